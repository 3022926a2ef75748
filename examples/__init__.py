"""Examples to run and to read: real models, exported and served with Demi."""
