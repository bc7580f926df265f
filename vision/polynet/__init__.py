"""PolyNet: PolyInception backbones (arXiv:1611.05725)."""
