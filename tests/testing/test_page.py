"""The page about tests: its examples run as they stand."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

from imagelabs_sdk.testing import JobScript, load_scenario

ROOT = Path(__file__).parent.parent.parent

SETTINGS = """
SECRET_KEY = "for tests alone"
USE_TZ = True
INSTALLED_APPS = [
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "imagelabs_sdk.contrib.django",
]
DATABASES = {"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:"}}
ROOT_URLCONF = "urls"
"""
WITHOUT_APP = """
SECRET_KEY = "for tests alone"
USE_TZ = True
ROOT_URLCONF = "urls"
"""


def blocks(page: str, language: str) -> list[str]:
    text = (ROOT / page).read_text(encoding="utf-8")
    return re.findall(rf"^```{language}\n(.*?)^```$", text, flags=re.MULTILINE | re.DOTALL)


def write_files(folder: Path, settings: str) -> None:
    (folder / "settings.py").write_text(settings)
    for block in blocks("docs/testing.md", "python"):
        found = re.match(r"# (\w+\.py)\n", block)
        assert found, f"an example without the name of its file: {block}"
        assert not (folder / found[1]).exists(), found[1]
        (folder / found[1]).write_text(block)


def count_passed(folder: Path, *arguments: str) -> int:
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-W", "error", "-p", "no:cacheprovider",
         "-p", "no:xdist", "--rootdir", str(folder), *arguments],
        env={**os.environ, "PYTHONPATH": f"{folder}{os.pathsep}{ROOT}"},
        cwd=folder, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
    found = re.search(r"(\d+) passed", done.stdout)
    assert found is not None
    return int(found[1])


def test_every_example_of_the_page_about_tests_passes(tmp_path: Path) -> None:
    """As a project of its own, file by file, with nothing but a site around it."""
    write_files(tmp_path, SETTINGS)
    written = sum(block.count("def test_") for block in blocks("docs/testing.md", "python"))
    assert count_passed(tmp_path, "--ds", "test_settings") == written > 15


def test_the_view_of_the_page_is_tested_without_our_app(tmp_path: Path) -> None:
    """The first examples do not need it, so a newcomer's settings do not have it."""
    write_files(tmp_path, WITHOUT_APP)
    names = ("test_poster.py", "test_three_posters.py")
    assert count_passed(tmp_path, "--ds", "settings", *names) == 2


def test_the_scenario_of_the_page_about_tests_is_one(tmp_path: Path) -> None:
    """It is what `imagelabs serve --script` takes."""
    (scenario,) = blocks("docs/testing.md", "json")
    path = tmp_path / "scenario.json"
    path.write_text(scenario)
    service = load_scenario(path)
    assert json.loads(scenario)["jobs"]
    assert service.submits == []


def test_the_table_of_the_page_about_tests_has_every_word() -> None:
    """It is what people look at first."""
    table = re.findall(r"^\| `(.*?)\|", (ROOT / "docs/testing.md").read_text(), re.MULTILINE)
    words = set(re.findall(r"(\w+)\(", " ".join(table))) - {"HttpResponse"}
    assert words == {name for name in vars(JobScript) if name[0] != "_"} - {"begin"}
