"""Numbers and images that say how good a model is: OCR, a glyph classifier, prompt adherence, one report."""
