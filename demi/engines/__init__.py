"""TensorRT engines beside a bundle: their records, seals, and how one is opened."""
