"""Small models that are hard to convert to half, as test cases of the planner."""
