"""Models in object storage: a bucket as a registry, and its files on this machine."""
