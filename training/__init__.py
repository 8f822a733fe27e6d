"""The offline stages: tokenizer, codes, prior, transformer, publishing."""
