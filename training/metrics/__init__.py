"""What is measured of models, priors and images."""
