"""Small models that are hard to convert to half: the planner's exam."""
