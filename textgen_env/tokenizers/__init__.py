"""Tokenizers: subword tokenizers trained here, and those of pretrained models."""
