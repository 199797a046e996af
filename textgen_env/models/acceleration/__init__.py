"""Faster inference: CUDA graphs, prepacked weights, and measurement of precisions."""
