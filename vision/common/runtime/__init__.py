"""Pictures by OpenCV alone; no torch, no framework."""
