"""Checkpoints from one format to another on one CPU, and the comparison of two of them. docs/checkpoints.md."""
