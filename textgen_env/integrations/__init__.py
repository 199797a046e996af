"""The environment through other libraries' interfaces."""
