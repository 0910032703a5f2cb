"""Experiments on top of the app: repeated runs and benchmarks."""
