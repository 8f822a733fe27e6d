"""The queue port and its adapters. Nothing in this package imports torch."""
