"""Benchmarks: how fast the package is, measured against what one would write without it. Nothing here is installed."""
