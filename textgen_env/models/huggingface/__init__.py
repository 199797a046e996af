"""Pretrained models of the `transformers` library as sequence models."""
