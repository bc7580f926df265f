"""Networks from a picture to an embedding."""
