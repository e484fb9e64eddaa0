"""What CI runs, session by session: `nox` for the quick ones, `nox -l` for the list."""

from pathlib import Path

import nox

nox.needs_version = ">=2025.5"
nox.options.default_venv_backend = "uv|virtualenv"
nox.options.error_on_missing_interpreters = False
nox.options.sessions = ["tests", "lint", "types"]

PYTHONS = ["3.10", "3.11", "3.12", "3.13", "3.14"]


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
    session.run("pytest", "tests/django", *session.posargs)


@nox.session(python="3.11", venv_backend="virtualenv")
def engines(session: nox.Session) -> None:
    """Run the tests of the diffusers engine, with torch and tiny pipelines on the CPU."""
    session.install("torch==2.13.0")  # by itself and by pip: a range may bring a build for GPUs
    session.install("-e", ".[test,diffusers]")
    coverage = ["--cov=imagelabs_sdk.server.engines.diffusers", "--cov-branch", "--cov-config="]
    session.run("pytest", "-n0", "tests/engines", *coverage, *session.posargs)


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


@nox.session
def docs(session: nox.Session) -> None:
    """Build the documentation; a broken link or reference fails."""
    session.install("-e", ".[docs]")
    session.run("mkdocs", "build", "--strict", env={"NO_MKDOCS_2_WARNING": "1"})


@nox.session
@nox.parametrize("extra", ["cli", "server", "curl", "truststore", "celery", "django"])
def extras(session: nox.Session, extra: str) -> None:
    """Install one extra alone, as the documentation says, and run what it is for."""
    examples = Path("examples").absolute()
    beside = {"celery": ["celery[redis]"], "django": ["Pillow"]}.get(extra, [])
    session.install(f".[{extra}]", *beside)
    session.chdir(session.create_tmp())  # away from the checkout: what is installed runs
    if extra == "cli":
        session.run("imagelabs", "generate", "--help", silent=True)
    elif extra == "server":
        session.run("python", f"{examples}/generate.py", "--embedded", "--out", "lighthouse.png")
    elif extra == "curl":
        code = "from imagelabs_sdk.transports.curl_cffi import CurlTransport; CurlTransport()"
        session.run("python", "-c", code)
    elif extra == "truststore":
        code = "from imagelabs_sdk.transports._session import DeadlineSession as Session"
        session.run("python", "-c", f"{code}; Session(None, None, 'system', False)")
    elif extra == "celery":
        with session.chdir(examples / "celery_worker"):
            session.run(
                "python", "-c", "import images; images.app.connection().ensure_connection()"
            )
    else:
        session.run("python", f"{examples}/django_site/manage.py", "check")


@nox.session
def build(session: nox.Session) -> None:
    """Build wheel and sdist; install each into a fresh environment and draw an image."""
    dist = Path(session.create_tmp()).absolute() / "dist"
    session.install("build", "twine", "virtualenv")
    session.run("python", "-m", "build", "--outdir", str(dist))
    session.run("twine", "check", "--strict", *map(str, dist.iterdir()))
    for archive in dist.iterdir():
        fresh = dist.parent / archive.suffix.lstrip(".")
        session.run("virtualenv", "-q", "--clear", str(fresh))
        python = str(fresh / "bin" / "python")
        session.run(python, "-m", "pip", "install", "-q", f"{archive}[cli,server]", external=True)
        session.chdir(fresh)
        command = [str(fresh / "bin" / "imagelabs"), "generate", "a lighthouse", "--embedded"]
        session.run(*command, "-o", "lighthouse.png", external=True)
