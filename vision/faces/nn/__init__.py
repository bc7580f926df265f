"""PolyInception modules and the trunk, in torch."""
