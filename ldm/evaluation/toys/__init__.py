"""The benchmark of 2-D points with exact answers."""
