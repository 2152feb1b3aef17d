"""Checkpoints on disk: what holds a model's weights, read by rows and written as a stream.

`open_weights` (source.py) reads a Hugging Face folder, a torch_dist checkpoint or per-rank shards alike.
"""
