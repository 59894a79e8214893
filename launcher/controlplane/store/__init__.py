"""Where the control plane keeps what must survive: one relational database."""
