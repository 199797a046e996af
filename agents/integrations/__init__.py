"""Agents of other libraries, trained in this project's environment."""
