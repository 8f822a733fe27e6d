"""Training of the refiner, which draws codes within clusters."""
