"""The models that a worker serves: loading, running, rendering, changing versions."""
