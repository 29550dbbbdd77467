"""What only a CUDA device needs: instruction rates, race and memory checks, tuning, a profiler."""
