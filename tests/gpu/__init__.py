"""Tests that run on a real GPU (`pytest tests/gpu`); elsewhere each says why it is skipped."""
