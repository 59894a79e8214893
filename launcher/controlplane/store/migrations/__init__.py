"""Alembic's environment: one revision per change of the tables."""
