"""Demi's tests: they mirror the packages, and read as their specification."""
