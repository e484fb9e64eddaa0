"""``manage.py demo``: the site on this machine, with all that it needs."""

import secrets
from argparse import ArgumentParser
from typing import Any

from django.contrib.auth import get_user_model
from django.core.management import call_command
from django.core.management.base import BaseCommand


class Command(BaseCommand):
    """Makes the database, a user for the admin, and runs the server."""

    help = "Run the example site on this machine; nothing else is needed."

    def add_arguments(self, parser: ArgumentParser) -> None:
        """Where."""
        parser.add_argument("address", nargs="?", default="127.0.0.1:8000")

    def handle(self, *_: Any, **options: Any) -> None:
        """Run until Ctrl-C."""
        call_command("migrate", verbosity=0)
        password = secrets.token_urlsafe(8)
        admin, _made = get_user_model().objects.get_or_create(
            username="admin", defaults={"is_staff": True, "is_superuser": True}
        )
        admin.set_password(password)
        admin.save()
        address = options["address"]
        self.stdout.write(f"Open http://{address}/, or /admin/ as admin, password {password}")
        # The embedded engine keeps its jobs in this process: a reload would forget them.
        call_command("runserver", address, use_reloader=False)
