"""Scale-Time Lattice: video object detection from sparse keyframes (arXiv:1804.05472)."""
