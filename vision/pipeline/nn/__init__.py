"""Models cut into stages, and the tables of ``core`` run by torch's pipeline engine."""
