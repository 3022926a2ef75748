"""Scripts of the peers, each run by the peer's own interpreter."""
