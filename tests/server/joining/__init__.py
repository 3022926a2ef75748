"""Answers of several servers as one."""
