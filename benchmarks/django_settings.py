"""A Django project to measure with: PostgreSQL and Redis on this machine, each kind of worker.

``IMAGELABS_BENCH`` holds what a run decides, as JSON; see `benchmarks.django_run`.
"""

import importlib.util
import json
import os
from typing import Any

_RUN: dict[str, Any] = json.loads(os.environ.get("IMAGELABS_BENCH", "{}"))
_HAS_TASKS = importlib.util.find_spec("django.tasks") is not None

SECRET_KEY = "for measurements alone"  # noqa: S105 - nobody is let in by it
USE_TZ = True
DATABASES = {
    "default": {
        "ENGINE": "django.db.backends.postgresql",
        "HOST": "127.0.0.1",
        "USER": "postgres",
        "NAME": "imagelabs_bench",
    }
}
MEDIA_ROOT = _RUN.get("media", "")
INSTALLED_APPS = [
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "imagelabs_sdk.contrib.django",
    *([] if _HAS_TASKS else ["django_tasks"]),
    "django_tasks_db",
]
TASKS = {"default": {"BACKEND": "django_tasks_db.DatabaseBackend"}}

_TASKS = {"TASKS": "default"} if _RUN.get("driver") == "django.tasks" else {}
_BACKEND = {"BACKEND": _RUN["backend"]} if "backend" in _RUN else {}
IMAGELABS: dict[str, Any] = {
    alias: {"OPTIONS": {"base_url": url, "allow_private_hosts": True}, **_TASKS, **_BACKEND}
    for alias, url in _RUN.get("services", {}).items()
}

CELERY_BROKER_URL = "redis://127.0.0.1:6379/12"
CELERY_WORKER_HIJACK_ROOT_LOGGER = False
CELERY_BEAT_SCHEDULE = {
    "imagelabs": {"task": "imagelabs.sweep", "schedule": 1.0, "options": {"expires": 5.0}}
}
