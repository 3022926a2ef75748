"""Greedy generation: tokens chosen one after the other, with the cache of the model's earlier steps."""
