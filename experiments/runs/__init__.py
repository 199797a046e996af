"""Runs: one training run from its configuration to a folder with a model."""
