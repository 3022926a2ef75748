"""Live accuracy of half precision: comparisons, their window, and what follows from them."""
