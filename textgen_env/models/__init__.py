"""Sequence models, their caches, and their storage, export and acceleration."""
