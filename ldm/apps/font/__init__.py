"""Outlines and font files from generated glyphs."""
