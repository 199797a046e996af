"""Evaluation of finished runs: scores, timing, and the files with the results."""
