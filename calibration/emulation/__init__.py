"""The half-precision emulator and the trials made with it."""
