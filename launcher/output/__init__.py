"""What a job prints, from the container's file to the control plane."""
