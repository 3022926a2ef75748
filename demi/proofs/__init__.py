"""Proofs that a bundle's half model is right and pays on this machine's CPU, made in a process that may die."""
