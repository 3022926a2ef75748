"""Processes that may die: notes of what they do, words for their death, and trials ahead of it."""
