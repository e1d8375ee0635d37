"""Metrics that know nothing of a data set."""
