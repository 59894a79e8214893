"""The container engines."""
