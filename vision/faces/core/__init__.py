"""Pure algorithms: standard library and numpy only."""
