"""The queue in Redis: any number of front ends and workers, on any number of machines."""
