"""Margins and the softmax over active rows."""
