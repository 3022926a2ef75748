"""Bundles as models with versions: loaded, described, swapped and unloaded."""
