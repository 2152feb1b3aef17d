"""What the training loop of `train.py` calls: the step's groups, the engine and its weights, and what stops a run."""
