"""``python -m benchmarks [--quick] [--only NAME] [--write]``."""

import argparse
import os
import sys

from . import calls, django, downloads, many, polling, startup
from .measure import Section
from .report import as_text, write

_SECTIONS = {
    "startup": startup.section,
    "calls": calls.section,
    "many": many.section,
    "downloads": downloads.section,
    "polling": polling.section,
    "django": django.section,
}
_MISLEADING = (
    "REQUESTS_CA_BUNDLE",
    "CURL_CA_BUNDLE",
    "SSL_CERT_FILE",
    "PYTHONDONTWRITEBYTECODE",
)


def main() -> None:
    """Measure, tell, and write if asked to."""
    parser = argparse.ArgumentParser("python -m benchmarks", description="What the SDK costs.")
    parser.add_argument("--quick", action="store_true", help="less exact, in under a minute")
    parser.add_argument("--only", choices=[*_SECTIONS], action="append", help="one section")
    parser.add_argument("--write", action="store_true", help="write docs/performance.md")
    asked = parser.parse_args()
    if asked.write and (asked.only or asked.quick):
        parser.error("what is written is the whole, and exact")
    _clear_environment()
    load = os.getloadavg()[0]
    found: dict[str, Section] = {}
    for name in asked.only or _SECTIONS:
        found[name] = _SECTIONS[name](quick=asked.quick)
        sys.stdout.write(as_text(found[name]) + "\n")
        sys.stdout.flush()
    if asked.write:
        sys.stdout.write(f"{write(found, load=load)}\n")


def _clear_environment() -> None:
    """Leave out what would be measured instead.

    Proxies and bundles of this machine would be asked, not our server. And without bytecode a
    fresh process would compile this package alone: what is installed has its bytecode already.
    """
    for name in list(os.environ):
        if name.lower().endswith("_proxy") or name in _MISLEADING or name.startswith("IMAGELABS_"):
            del os.environ[name]


if __name__ == "__main__":
    main()
