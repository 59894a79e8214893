"""For those who write initialization policies: what their policy would do, and why."""
