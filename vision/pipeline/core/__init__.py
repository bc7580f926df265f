"""Action tables: made, checked, simulated, chosen. Standard library and numpy alone."""
