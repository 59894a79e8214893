"""Initialization policies: Rego, compiled to WebAssembly, evaluated in-process."""
