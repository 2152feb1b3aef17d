"""Rewards that a rule decides: the completion is right or wrong."""
