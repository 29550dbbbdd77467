"""Predict from a datasheet how fast a GPU runs a LLaMA at any weight bit width."""
