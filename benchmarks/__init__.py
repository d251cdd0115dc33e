"""Runnable scripts: ``python -m benchmarks.NAME``."""
