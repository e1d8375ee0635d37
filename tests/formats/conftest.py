"""Fixtures for data of one's own."""

from own_data import options, root  # noqa: F401
