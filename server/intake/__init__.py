"""The way of a request into the queue."""
