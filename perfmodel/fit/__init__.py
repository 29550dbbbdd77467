"""Measurements, fits to them, and how far predictions were off."""
