"""Benchmarks: figures, and their ratio to a named peer or floor measured in the same run."""
