"""Where traces of runs go."""
