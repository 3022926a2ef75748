"""Trained models in the commands that users type, from export to serving."""
