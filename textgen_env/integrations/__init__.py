"""Adapters of the environment to the interfaces of other libraries."""
