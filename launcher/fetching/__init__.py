"""How git gets at a repository: for the launcher and for the control plane."""
