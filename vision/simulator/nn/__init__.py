"""What a module computes and keeps, read from a forward and backward pass without data."""
