"""A package only so that it is installed with the others; servers have this folder on their PYTHONPATH."""
