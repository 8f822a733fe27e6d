"""Plants small faults in the sources, and counts those that the tests notice; see `__main__`."""
