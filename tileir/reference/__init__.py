"""NumPy executors of every level, the oracle of the GPU."""
