"""Conformance check for vector environments of text generation."""

from textgen_env.testing.checker import ContractError, check_vector_env

__all__ = ["ContractError", "check_vector_env"]
