"""What CI runs, session by session: `nox` for the quick ones, `nox -l` for the list."""

import nox

nox.needs_version = ">=2025.5"
nox.options.default_venv_backend = "uv|virtualenv"
nox.options.error_on_missing_interpreters = False
nox.options.sessions = ["tests", "lint", "types"]

PYTHONS = ["3.10", "3.11", "3.12", "3.13", "3.14"]

EXTRAS = {
    "cli": "import imagelabs_sdk.__main__",
    "server": "import imagelabs_sdk.server.http",
    "cli,server": None,
    "celery": "import imagelabs_sdk.contrib.celery",
    "django": "import imagelabs_sdk.contrib.django",
}
"""Each extra by itself, and an import that needs it; what is None runs the README's quick start."""


@nox.session(python=PYTHONS)
def tests(session: nox.Session) -> None:
    """Run the whole suite with the newest versions of everything."""
    session.install("-e", ".[test]")
    session.run("pytest", *session.posargs)


@nox.session(python=PYTHONS[0], venv_backend="uv")
def lowest(session: nox.Session) -> None:
    """Run the whole suite with the lowest versions that setup.cfg allows."""
    session.install("--resolution", "lowest-direct", "-e", ".[test]")
    session.run("pytest", *session.posargs)


@nox.session(python="3.12")
def django60(session: nox.Session) -> None:
    """Run Django's tests on the version between the oldest and the newest supported one."""
    session.install("-e", ".[test]", "Django~=6.0.0")
    session.run("pytest", *(session.posargs or ["tests/django"]))


@nox.session
def lint(session: nox.Session) -> None:
    """Check style and format."""
    session.install("ruff")
    session.run("ruff", "check", ".")
    session.run("ruff", "format", "--check", ".")


@nox.session
def types(session: nox.Session) -> None:
    """Check all types, strictly."""
    session.install("-e", ".[test]")
    session.run("mypy")
