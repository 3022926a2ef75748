"""Bundles on disk and the manifest that describes them."""
