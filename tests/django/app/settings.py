"""A project for the tests: SQLite always, PostgreSQL and MariaDB beside it if they are there.

Processes that a test starts get the database it made for them by ``IMAGELABS_TEST_DATABASE``.
"""

import importlib.util
import json
import os
import socket
import tempfile
from pathlib import Path
from typing import Any

import pymysql

pymysql.install_as_MySQLdb()  # wheels for every system, where mysqlclient needs a compiler

SECRET_KEY = "for tests alone"
DEBUG = False
USE_TZ = True
ALLOWED_HOSTS = ["*"]
ROOT_URLCONF = "tests.django.app.urls"
STATIC_URL = "static/"
LOGIN_URL = "admin:login"
INSTALLED_APPS = [
    "django.contrib.admin",
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.messages",
    "django.contrib.sessions",
    "django.contrib.staticfiles",
    "imagelabs_sdk.contrib.django",
    "tests.django.app",
    # The backport's own app is for Django before 6.0.
    *([] if importlib.util.find_spec("django.tasks") else ["django_tasks"]),
    "django_tasks_db",
]
MIDDLEWARE = [
    "django.middleware.security.SecurityMiddleware",
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.middleware.csrf.CsrfViewMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "django.contrib.messages.middleware.MessageMiddleware",
]
TEMPLATES: list[dict[str, Any]] = [
    {
        "BACKEND": "django.template.backends.django.DjangoTemplates",
        "APP_DIRS": True,
        "OPTIONS": {
            "context_processors": [
                "django.template.context_processors.request",
                "django.contrib.auth.context_processors.auth",
                "django.contrib.messages.context_processors.messages",
            ]
        },
    }
]
STORAGES = {
    "default": {"BACKEND": "django.core.files.storage.FileSystemStorage"},
    "staticfiles": {"BACKEND": "django.contrib.staticfiles.storage.StaticFilesStorage"},
    "imagelabs": {"BACKEND": "tests.django.app.storage.FailingStorage"},
}
PASSWORD_HASHERS = ["django.contrib.auth.hashers.MD5PasswordHasher"]
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
MEDIA_ROOT = os.environ.get("IMAGELABS_TEST_MEDIA") or str(
    Path(tempfile.gettempdir()) / "imagelabs-test-media"
)

SQLITE: dict[str, Any] = {
    "ENGINE": "django.db.backends.sqlite3",
    "NAME": ":memory:",
    "OPTIONS": {"transaction_mode": "IMMEDIATE", "timeout": 20},
}
# Threads can use a database in memory only one after the other.
_FILE = str(Path(tempfile.gettempdir()) / f"imagelabs-test-{os.getpid()}.sqlite3")
# Two checkouts that run their tests at once on one server need databases of their own.
NAMESPACE = os.environ.get("IMAGELABS_TEST_NAMESPACE", "imagelabs")
FILE: dict[str, Any] = {**SQLITE, "NAME": _FILE, "TEST": {"NAME": _FILE}}
POSTGRES: dict[str, Any] = {
    "ENGINE": "django.db.backends.postgresql",
    "NAME": NAMESPACE,
    "HOST": "127.0.0.1",
    "USER": "postgres",
}
MARIADB: dict[str, Any] = {
    "ENGINE": "django.db.backends.mysql",
    "NAME": NAMESPACE,
    "HOST": "127.0.0.1",
    "USER": "root",
    # The narrower of its character sets: what fits there fits everywhere.
    "OPTIONS": {"charset": "utf8mb3"},
    "TEST": {"CHARSET": "utf8mb3", "COLLATION": "utf8mb3_general_ci"},
}


def _reachable(port: int) -> bool:
    """Whether a service listens here; it must, where the environment insists on it."""
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
    except OSError:
        if os.environ.get("IMAGELABS_TEST_SERVICES") == "1":
            raise
        return False
    return True


HAS_POSTGRES = _reachable(5432)
HAS_MARIADB = _reachable(3306)
HAS_REDIS = _reachable(6379)

DATABASES: dict[str, dict[str, Any]] = {"default": SQLITE, "file": FILE}
if given := os.environ.get("IMAGELABS_TEST_DATABASE"):
    DATABASES = {"default": json.loads(given)}
else:
    DATABASES |= {"postgres": POSTGRES} if HAS_POSTGRES else {}
    DATABASES |= {"mariadb": MARIADB} if HAS_MARIADB else {}

_TASKS = "django.tasks" if importlib.util.find_spec("django.tasks") else "django_tasks"
TASKS = {
    "default": {"BACKEND": f"{_TASKS}.backends.immediate.ImmediateBackend"},
    "database": {"BACKEND": "django_tasks_db.DatabaseBackend"},
}
CELERY_BROKER_URL = "redis://127.0.0.1:6379/14"
CELERY_TASK_DEFAULT_QUEUE = os.environ.get("IMAGELABS_TEST_QUEUE", "imagelabs-test")
CELERY_BEAT_SCHEDULE = {
    "imagelabs": {"task": "imagelabs.sweep", "schedule": 0.2, "options": {"expires": 5.0}}
}

IMAGELABS: dict[str, Any] = json.loads(os.environ.get("IMAGELABS_TEST_SETTINGS", '{"default": {}}'))
