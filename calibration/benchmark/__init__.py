"""FP32 and half side by side on this machine: time, memory and size."""
