"""Pretrained models of the transformers library behind the sequence-model interface."""
