"""Mathematics and file formats: tree, priors, models, sampling, model bundles."""
