"""Checkpoints on disk, read with suspicion and written whole."""
