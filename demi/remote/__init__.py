"""Bundles in buckets and on web servers: listed, downloaded once per machine, compared with their digests."""
