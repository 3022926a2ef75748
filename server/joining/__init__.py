"""Answers of several servers as one: pure functions, which neither ask nor wait."""
