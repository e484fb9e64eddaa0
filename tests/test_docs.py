"""Every block of code in README.md and docs/ runs as it stands, against a real service."""

import configparser
import importlib
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import attrs
import pytest

from imagelabs_sdk import __version__
from imagelabs_sdk.server.engines.landscape import LandscapeEngine
from imagelabs_sdk.server.http import running
from imagelabs_sdk.server.local import LocalServer

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
ELSEWHERE = ("docs/django.md", "docs/testing.md", "docs/performance.md")
"""Pages with a test of their own, or without code to run."""

_BLOCK = re.compile(
    r"^(?P<mark><!-- docs: (?P<how>[^>]+) -->\n)?```(?P<kind>\w+)[^\n]*\n(?P<code>.*?)^```",
    re.M | re.S,
)
_EXTRA = re.compile(r"imagelabs_sdk\[([^\]]*)\]|\"\.\[([^\]]*)\]")


@attrs.frozen
class Block:
    """One fenced block.

    Attributes:
        how: The comment above it, ``not run: REASON``; empty: it runs.
    """

    kind: str
    code: str
    how: str


def blocks(page: Path) -> list[Block]:
    found = _BLOCK.finditer(page.read_text(encoding="utf-8"))
    return [Block(m["kind"], m["code"], m["how"] or "") for m in found]


def name(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


@pytest.fixture(scope="module")
def service() -> Iterator[str]:
    with running(LocalServer(LandscapeEngine(duration=0.0))) as url:
        yield url


def script_of(page: Path) -> str:
    """Return a page's code as one program, in which the lines of a shell are called in turn."""
    parts = ["import subprocess as _subprocess"]
    for block in blocks(page):
        if block.kind == "python" and not block.how:
            parts.append(block.code)
        elif block.kind == "sh" and not block.how:
            parts += [
                f"_subprocess.run({['bash', '-c', line]!r}, check=True)" for line in ours(block)
            ]
    return "\n".join(parts)


def ours(block: Block) -> list[str]:
    """Return the lines that call our command or prepare for it; installing is not repeated here."""
    command = f'imagelabs() {{ {shlex.quote(sys.executable)} -m imagelabs_sdk "$@"; }}'
    lines = block.code.replace("\\\n", " ").splitlines()
    return [
        f"{command}; {line}"
        for line in lines
        if line.startswith(("imagelabs ", "printf ", "mkdir "))
    ]


@pytest.mark.parametrize("page", [p for p in PAGES if name(p) not in ELSEWHERE], ids=name)
def test_the_code_on_a_page_runs_as_it_stands(page: Path, service: str, tmp_path: Path) -> None:
    """A reader copies it, from top to bottom, and wants it to work."""
    script = tmp_path / "page.py"
    script.write_text(script_of(page), encoding="utf-8")
    done = subprocess.run(
        [sys.executable, str(script)],
        cwd=tmp_path,
        env={**os.environ, "IMAGELABS_BASE_URL": service, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_what_a_page_installs_exists(page: Path) -> None:
    """An extra that setup.cfg does not know is installed as nothing, with a warning at most."""
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    known = set(config["options.extras_require"])
    named = {
        e
        for m in _EXTRA.finditer(page.read_text(encoding="utf-8"))
        for e in (m[1] or m[2]).split(",")
    }
    assert named <= known


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_a_link_on_a_page_leads_somewhere(page: Path) -> None:
    """Relative links and images point to files that exist, with anchors that their page has."""
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.S)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        file = page.parent / path if path else page
        assert file.exists(), target
        if anchor and file.suffix == ".md":
            headings = re.findall(r"^#+ (.+)$", file.read_text(encoding="utf-8"), re.M)
            slugs = {re.sub(r"[^\w\- ]", "", h.lower()).strip().replace(" ", "-") for h in headings}
            assert anchor in slugs, target


def test_every_page_is_reached_from_the_readme() -> None:
    """By links alone, as on a forge, which has no menu."""
    reached: set[Path] = set()
    coming = [ROOT / "README.md"]
    while coming:
        page = coming.pop()
        if page in reached or not page.is_file():
            continue
        reached.add(page)
        links = re.findall(r"\]\(([^)\s#:]+\.md)[)#]", page.read_text(encoding="utf-8"))
        coming += [(page.parent / link).resolve() for link in links]
    assert {name(page) for page in [*PAGES, ROOT / "SECURITY.md"]} <= {name(p) for p in reached}


def test_the_install_page_names_the_version_of_this_checkout() -> None:
    """A reader who asks an index for another one gets nothing."""
    page = (ROOT / "docs" / "install.md").read_text(encoding="utf-8")
    major, minor, _ = (int(part) for part in __version__.split("."))
    assert f"imagelabs_sdk-{__version__}-py3-none-any.whl" in page
    assert f">={major}.{minor},<{major}.{minor + 1}`" in page


PUBLIC = ("", ".embedded", ".testing", ".contrib.celery", ".contrib.g4f")
"""The packages whose names the upgrade policy promises; the Django app has a page of its own."""


@pytest.mark.parametrize("package", PUBLIC)
def test_the_reference_has_every_public_name(package: str) -> None:
    """A name that an error or another page mentions is looked up there."""
    page = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")
    shown = set(re.findall(r"^::: (\S+)$", page, re.M))  # rooms, and single names
    public = importlib.import_module(f"imagelabs_sdk{package}")
    values = [getattr(public, name) for name in public.__all__]
    homes = {f"{v.__module__}.{v.__name__}": v.__module__ for v in values if callable(v)}
    assert [name for name, room in homes.items() if not {name, room} & shown] == []


def test_a_block_that_is_not_run_says_why() -> None:
    """A block is left out for a reason that its source tells."""
    for page in PAGES:
        for block in blocks(page):
            assert not block.how.startswith("not run") or len(block.how) > len("not run: ") + 10
