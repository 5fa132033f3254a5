"""Benchmarks: ratios within one run, printed with their units. `python -m benchmarks` lists them."""
