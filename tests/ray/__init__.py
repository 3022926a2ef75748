"""Demi on a real Ray cluster. `make ray` runs these tests in an environment of their own, apart from the network."""
