"""Takes infrastructure runs and executes each one in a container it can trust."""

__version__ = "0.1.0"
