"""What touches the world: videos, cameras, files, windows (PyAV, OpenCV, supervision)."""
