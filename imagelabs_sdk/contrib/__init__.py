"""Rooms for neighbours: what other frameworks expect, told in the package's public names."""
