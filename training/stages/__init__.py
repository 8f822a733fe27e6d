"""The stages of training: each reads a configuration and files, and writes files."""
