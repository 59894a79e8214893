"""The places code comes from."""
