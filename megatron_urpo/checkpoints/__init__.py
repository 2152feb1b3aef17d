"""A run's checkpoints: what is in one, how it is committed, found and loaded, and who may write."""
