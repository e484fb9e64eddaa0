"""The pages as a site of its own process, for browsers: ``python -m tests.django.app.site``.

Prints its port, and serves until it is terminated. One user, "visitor", logs in with "visitor".
"""

import os
from collections.abc import Callable

import django
from django.http import HttpRequest, HttpResponse

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
    "connect-src 'self'; form-action 'self'"
)


def strict(
    get_response: Callable[[HttpRequest], HttpResponse],
) -> Callable[[HttpRequest], HttpResponse]:
    """A middleware: nothing inline, nothing from elsewhere."""

    def respond(request: HttpRequest) -> HttpResponse:
        response = get_response(request)
        response.headers.setdefault("Content-Security-Policy", POLICY)
        return response

    return respond


def main() -> None:
    os.environ["DJANGO_SETTINGS_MODULE"] = "tests.django.app.settings"
    django.setup()

    from django.conf import settings
    from django.contrib.auth.models import User
    from django.contrib.staticfiles.handlers import StaticFilesHandler
    from django.core.management import call_command
    from django.core.servers.basehttp import ThreadedWSGIServer, WSGIRequestHandler
    from django.core.wsgi import get_wsgi_application

    settings.MIDDLEWARE.insert(0, "tests.django.app.site.strict")
    call_command("migrate", verbosity=0)
    User.objects.create_superuser("visitor", password="visitor")
    server = ThreadedWSGIServer(("127.0.0.1", 0), WSGIRequestHandler)
    server.set_app(StaticFilesHandler(get_wsgi_application()))
    print(server.server_port, flush=True)  # noqa: T201 - for who has started it
    server.serve_forever()


if __name__ == "__main__":
    main()
