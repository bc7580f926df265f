"""Configs of this codebase as graphs and strategies."""
