"""The checks of `ldm doctor`."""
