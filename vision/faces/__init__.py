"""Face recognition whose active classes come from hierarchies of class rows (arXiv:1801.01687)."""
