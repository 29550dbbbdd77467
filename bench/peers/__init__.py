"""Kernels of other projects: how each is called, tried alone, timed with ours, and carried."""
