"""Measures for a user's own images."""
