"""Measures gitsync beside its peers and beside the floor, in one run, as ratios; each figure with a correctness check.

``python -m benchmarks [--scale 0.1] [--only NAME …]`` writes ``reports/bench.json`` and prints a table. Absolute times
mean little on a shared machine, ratios of one run mean something; what is compared takes turns.

It owns the API server and etcd that it starts (``server``), and nothing else. It never fails for a missed goal: it says
so. A wrong result is an error.
"""
