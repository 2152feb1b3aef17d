"""Runs programs that a model wrote against tests, in a sandbox; docs/verifiers.md has the threat model."""
