"""Environments: the vector environment, its single-episode view, rewards and registration."""
