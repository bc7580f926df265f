"""What MMEngine's registries see of this room."""
