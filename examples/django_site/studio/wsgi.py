"""``gunicorn --worker-class gthread --threads 8 studio.wsgi``."""

import os

from django.conf import settings
from django.contrib.staticfiles.handlers import StaticFilesHandler
from django.core.wsgi import get_wsgi_application

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "studio.settings_services")

application = get_wsgi_application()
if settings.DEBUG:
    application = StaticFilesHandler(application)
