"""Files of pictures, identities and pairs."""
