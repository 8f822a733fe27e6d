"""The VQ tokenizer: training, and what survives it."""
