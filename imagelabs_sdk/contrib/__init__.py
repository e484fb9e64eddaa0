"""Bridges to other frameworks, written with the public names of the package."""
