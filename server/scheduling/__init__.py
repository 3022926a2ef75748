"""From one request to a batch on a device, and back."""
