"""Experiments: the command `textgen`, with its runs, recipes, reports and benchmarks."""
