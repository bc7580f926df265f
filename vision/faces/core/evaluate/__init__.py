"""Protocols of verification and identification."""
