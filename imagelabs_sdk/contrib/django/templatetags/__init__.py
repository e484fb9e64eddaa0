"""``{% load imagelabs %}``."""
