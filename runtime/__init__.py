"""The runtime: packages onto GPUs. Imports neither MLIR nor torch."""
