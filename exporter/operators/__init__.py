"""What is known of operators: their schemas, the tables kept by hand, constants that mean infinity."""
