"""Face recognition whose active classes come from hierarchies over the class rows (arXiv:1801.01687)."""
