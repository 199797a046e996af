"""Runs: what `textgen` does, on everything that `agents` and `textgen_env` offer."""
