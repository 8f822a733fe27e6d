"""Training of the autoregressive model."""
