"""k-means: exact in one dimension, and of vectors."""
