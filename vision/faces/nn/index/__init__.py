"""Indices over class rows."""
