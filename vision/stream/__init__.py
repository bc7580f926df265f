"""Live and recorded video in, annotated video and records out, with bounded delay."""
