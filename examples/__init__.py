"""Examples to run and to read: real models on their way through Demi."""
