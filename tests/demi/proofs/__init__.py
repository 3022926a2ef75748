"""Tests of the proofs that half is correct and faster on a CPU."""
