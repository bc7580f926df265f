"""DELTA: activation memory under a budget (arXiv:2203.15980)."""
