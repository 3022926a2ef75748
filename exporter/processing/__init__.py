"""The preprocessing and postprocessing of a source, found for its bundle."""
