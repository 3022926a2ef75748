"""Which nodes may be half; `find_plan.py` tells the story."""
