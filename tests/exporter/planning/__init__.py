"""Tests of the measured precision planning: emulate, constrain, repair, measure, cut, explain."""
