"""Scripts that the peers run, each in its own interpreter."""
