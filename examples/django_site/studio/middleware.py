"""Two things that a site of your own has already, or has otherwise."""

import secrets
from collections.abc import Callable

from django.contrib.auth import get_user_model, login
from django.http import HttpRequest, HttpResponse

View = Callable[[HttpRequest], HttpResponse]

_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
    "connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)


def content_security_policy(get_response: View) -> View:
    """No inline code, nothing from elsewhere; Django 6.0 has a middleware for that."""

    def respond(request: HttpRequest) -> HttpResponse:
        response = get_response(request)
        response.headers.setdefault("Content-Security-Policy", _POLICY)
        return response

    return respond


def everybody_is_a_guest(get_response: View) -> View:
    """Log visitors in as users of their own, without a password. For an example alone."""

    def respond(request: HttpRequest) -> HttpResponse:
        if not request.user.is_authenticated and not request.path.startswith("/admin/"):
            users = get_user_model().objects
            guest = users.create_user(f"guest-{secrets.token_hex(6)}")
            login(request, guest, backend="django.contrib.auth.backends.ModelBackend")
        return get_response(request)

    return respond
