"""Tests that run on a real GPU (`pytest tests/gpu`); elsewhere they are skipped with a reason."""
