"""Preprocessing of text, images and sound, and postprocessing of a model's outputs, as a bundle describes them."""
