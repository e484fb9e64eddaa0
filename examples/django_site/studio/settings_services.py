"""The same site with PostgreSQL, Redis and workers, each one a process of its own.

::

    imagelabs serve --port 8765                      # or IMAGELABS_BASE_URL=https://...
    export DJANGO_SETTINGS_MODULE=studio.settings_services SECRET_KEY=... DEBUG=1
    createdb studio
    python manage.py migrate
    gunicorn --worker-class gthread --threads 8 studio.wsgi
    python manage.py imagelabs_sweep                 # or, instead of it, Celery:
    celery -A studio worker
    celery -A studio beat

Extras: ``imagelabs_sdk[celery,cli,django,server]``; besides ``psycopg[binary]``, ``redis``,
``gunicorn``.
"""

import os

from .settings import *  # noqa: F403 - the rest is as it was
from .settings import KEPT

DEBUG = os.environ.get("DEBUG") == "1"  # then wsgi.py serves the static files, too
STATIC_ROOT = KEPT / "static"  # for `manage.py collectstatic`, and a web server in front
SECRET_KEY = os.environ["SECRET_KEY"]
DATABASES = {
    "default": {
        "ENGINE": "django.db.backends.postgresql",
        "NAME": os.environ.get("PGDATABASE", "studio"),
        "HOST": os.environ.get("PGHOST", "127.0.0.1"),
        "USER": os.environ.get("PGUSER", "postgres"),
        "PASSWORD": os.environ.get("PGPASSWORD", ""),
    }
}
CACHES = {
    "default": {
        "BACKEND": "django.core.cache.backends.redis.RedisCache",
        "LOCATION": os.environ.get("REDIS_URL", "redis://127.0.0.1:6379/0"),
    }
}
# No BACKEND: requests travel over the network, so that any process can poll the jobs.
IMAGELABS = {
    "default": {
        "OPTIONS": {"base_url": os.environ.get("IMAGELABS_BASE_URL", "http://127.0.0.1:8765")}
    }
}

CELERY_BROKER_URL = CACHES["default"]["LOCATION"]
CELERY_BEAT_SCHEDULE = {
    "imagelabs": {"task": "imagelabs.sweep", "schedule": 1.0, "options": {"expires": 5.0}}
}
