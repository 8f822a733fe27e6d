"""The queue port and its adapters, and log set-up. Nothing in this package imports torch."""
