"""Acceleration: CUDA graphs, prepacked weights and the choice of a precision."""
