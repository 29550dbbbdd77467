"""Quantize LLaMA-type checkpoints: sensitivity, codebooks, methods, checkpoints, evaluation."""
