"""Comparisons with a peer or a bound, in one run; each prints a table. `python -m benchmarks [NAME ...]`."""
