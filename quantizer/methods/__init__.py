"""The methods: one matrix and its statistics in, packed tensors out."""
