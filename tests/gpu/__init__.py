"""Tests that run on a real GPU (`pytest -m gpu`); elsewhere each says why it is skipped."""
