"""Agents of other libraries in this project's environment."""
