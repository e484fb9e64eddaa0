"""The command ``imagelabs``."""
