"""Demi in Ray Serve: each replica is a whole server without sockets, and answers about all models are those of all replicas."""
