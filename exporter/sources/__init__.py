"""Model sources other than PyTorch, and the options for all of them."""
