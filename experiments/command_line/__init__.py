"""Command line: commands and options by name, and what is answered before PyTorch is imported."""
