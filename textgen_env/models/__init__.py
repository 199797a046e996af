"""Models that are asked step by step or all at once, and how they are kept on disk."""
