"""Tests of the proofs that half pays on a CPU."""
