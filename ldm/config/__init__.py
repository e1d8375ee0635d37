"""Every setting, its range, and how it is read."""
