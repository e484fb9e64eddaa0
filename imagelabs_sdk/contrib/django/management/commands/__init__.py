"""``manage.py imagelabs_...``."""
