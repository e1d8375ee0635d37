"""The glyph benchmark."""
