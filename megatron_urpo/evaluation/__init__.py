"""Held-out metrics: of a run's engine, of a folder, and the outside measure of open-ended answers."""
