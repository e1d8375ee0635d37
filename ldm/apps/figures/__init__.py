"""The figures that explain the method."""
