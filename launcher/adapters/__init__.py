"""One package for each family of outside things, one module for each vendor."""
