"""Recording, dropping, swapping and replaying for torch."""
