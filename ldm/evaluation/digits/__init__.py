"""The coloured-digit benchmark."""
