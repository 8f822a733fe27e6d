"""Images on their way through the transformer: who is in a batch, one step, the plain loop."""
