"""Measurements of the launcher on this machine; `make bench` runs them."""
