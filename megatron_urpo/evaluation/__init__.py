"""Held-out metrics of an engine, and the outside measure of open-ended answers."""
