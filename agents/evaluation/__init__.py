"""Evaluation: quality of generated texts and exposure bias."""
