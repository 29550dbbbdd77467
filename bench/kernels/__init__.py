"""Kernels and peers: prepared, checked, timed in turn, held against predictions."""
