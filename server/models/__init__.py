"""Models with versions, made from bundles: load, describe, swap and unload them."""
