"""Find which nodes may be half; start with `find_plan.py`."""
