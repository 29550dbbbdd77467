"""Texts, perplexity, tasks, and the methods side by side."""
