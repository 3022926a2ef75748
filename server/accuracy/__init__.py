"""Live accuracy of half precision: the guard, shadow runs, and the statistics over a window of samples."""
