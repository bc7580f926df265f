"""What the registries see of the common room."""
