"""A room still being furnished."""
