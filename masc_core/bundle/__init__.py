"""Model bundles, a folder each: `manifest` says what is in it, `registry` which one is active."""
