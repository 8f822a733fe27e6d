"""The transformer and the VQ tokenizer, state-dict compatible with LlamaGen."""
