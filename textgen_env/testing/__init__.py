"""Conformance checks for vector environments of text generation."""
