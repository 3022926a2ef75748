"""Replicas of Ray Serve, without Ray: arguments, options, the fleet with fake peers, choices, gRPC calls."""
