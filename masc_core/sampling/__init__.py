"""From logits to a code: CFG, temperature, filters, the draw, and the code within the cluster."""
