"""The launcher's side of the worker protocol, over HTTP."""
