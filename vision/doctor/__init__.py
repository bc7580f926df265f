"""Is this installation whole? Stands above the rooms, since it tries what they need."""
