"""Groups of commands, added to the command line by `launcher.cli`."""
