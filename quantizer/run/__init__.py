"""A quantization that survives: units of work, their ledger, who does them."""
