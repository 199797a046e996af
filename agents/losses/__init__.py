"""Losses: divergences of next-token distributions, labels, and the means that agents minimize."""
