"""Where class rows and their optimizer state are kept."""
