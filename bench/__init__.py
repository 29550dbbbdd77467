"""Measure this device, run the real kernels, hold each measurement against its prediction."""
