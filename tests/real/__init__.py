"""Real models, end to end: trained weights through the commands that people type."""
