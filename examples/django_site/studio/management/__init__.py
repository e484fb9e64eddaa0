"""For ``manage.py demo``."""
