"""Scheduling: from single requests to batches on a device, and back to answers."""
