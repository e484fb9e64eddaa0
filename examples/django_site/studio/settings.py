"""The site as it starts with one command: SQLite, and an engine that draws without a network."""

from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent.parent
KEPT = HERE / "var"  # the database and the images
KEPT.mkdir(exist_ok=True)  # the system checks already open the database

SECRET_KEY = "of an example that runs on this machine alone"  # noqa: S105 - and guards nothing
DEBUG = True
ALLOWED_HOSTS = ["localhost", "127.0.0.1"]
ROOT_URLCONF = "studio.urls"
USE_TZ = True
STATIC_URL = "static/"
LOGIN_URL = "admin:login"
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"

INSTALLED_APPS = [
    "studio",
    "django.contrib.admin",
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.messages",
    "django.contrib.sessions",
    "django.contrib.staticfiles",
    "imagelabs_sdk.contrib.django",
]
MIDDLEWARE = [
    "django.middleware.security.SecurityMiddleware",
    "studio.middleware.content_security_policy",
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.middleware.locale.LocaleMiddleware",
    "django.middleware.csrf.CsrfViewMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "django.contrib.messages.middleware.MessageMiddleware",
    "studio.middleware.everybody_is_a_guest",
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

DATABASES: dict[str, dict[str, Any]] = {
    "default": {
        "ENGINE": "django.db.backends.sqlite3",
        "NAME": KEPT / "db.sqlite3",
        # Writers wait for each other instead of failing.
        "OPTIONS": {"transaction_mode": "IMMEDIATE", "timeout": 20},
    }
}

# Where images come from. Without BACKEND it is the service itself; see settings_services.py.
IMAGELABS: dict[str, Any] = {
    "default": {
        "BACKEND": "imagelabs_sdk.embedded.embedded_transport",
        # Six seconds an image; asked twice a second, since asking costs nothing here.
        "OPTIONS": {"duration": 6.0, "poll_interval": 0.5},
    }
}
# Images are served by the app's own view, to their owners alone; not below MEDIA_URL.
STORAGES = {
    "default": {"BACKEND": "django.core.files.storage.FileSystemStorage"},
    "staticfiles": {"BACKEND": "django.contrib.staticfiles.storage.StaticFilesStorage"},
    "imagelabs": {
        "BACKEND": "django.core.files.storage.FileSystemStorage",
        "OPTIONS": {"location": KEPT / "images"},
    },
}
