"""Knowledge about operators: schemas, hand-kept tables, and constants that mean minus infinity."""
