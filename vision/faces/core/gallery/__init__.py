"""People who are known, and faces brought to one place."""
