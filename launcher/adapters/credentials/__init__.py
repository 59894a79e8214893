"""Where logins for image registries come from; one module for each source."""
