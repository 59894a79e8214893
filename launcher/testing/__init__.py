"""Fakes of the ports, shipped and typed; they obey the same contract tests."""
