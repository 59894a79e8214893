"""What only a worker pool can read, and what only it can have written."""
