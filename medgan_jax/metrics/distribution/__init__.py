"""Metrics of generated images against real ones as sets, with intervals that hold for small sets."""
