"""Processes that may crash: records of their work, errors for their crashes, and trials in a separate process."""
