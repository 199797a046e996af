"""Benchmarks of decoding, the environment, losses and updates."""
