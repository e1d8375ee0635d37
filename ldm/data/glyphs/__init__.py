"""Rendered Chinese glyphs with English captions."""
