"""Faces found in pictures, people found in a gallery."""
