"""Model bundles: a version of a model in a folder, and the registry of all of them."""
