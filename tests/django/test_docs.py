"""docs/django.md, followed line by line in an empty folder."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from imagelabs_sdk.contrib.django import checks, conf
from imagelabs_sdk.contrib.django.clients import Clients

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/django.md").read_text(encoding="utf-8")
FILES = re.findall(r"<!-- file: (\S+) -->\n```python\n(.*?)```", PAGE, re.S)

VISIT = """
import django, re, time
django.setup()
from django.contrib.auth.models import User
from django.test import Client
from django.test.utils import setup_test_environment
setup_test_environment()
visitor = Client()
assert visitor.get("/images/").headers["Location"].startswith("/login/")
User.objects.create_superuser("visitor", password="visitor")
page = visitor.get("/login/?next=/images/")
assert page.status_code == 200
answer = visitor.post("/login/?next=/images/", {"username": "visitor", "password": "visitor"})
assert answer.headers["Location"] == "/images/", answer.content
assert visitor.get("/images/").status_code == 200
path = visitor.post("/images/", {"prompt": "a lighthouse"}).headers["Location"]
end = time.monotonic() + 60
while (job := visitor.get(path, headers={"Accept": "application/json"}).json())["refresh"]:
    assert time.monotonic() < end, job
    time.sleep(0.2)
assert job["state"] == "done", job
assert visitor.get(job["image"]).headers["Content-Type"] == "image/png"
assert visitor.get(job["thumbnail"]).headers["Content-Type"] == "image/webp"
from studio.views import draw
from django.test import RequestFactory
request = RequestFactory().post("/", {"prompt": ""})
request.user = User.objects.get()
assert draw(request).status_code == 400
"""


def run(folder: Path, *arguments: str) -> str:
    environment = {
        **{key: value for key, value in os.environ.items() if not key.startswith("IMAGELABS")},
        "DJANGO_SETTINGS_MODULE": "studio.settings",
        "PYTHONPATH": f"{ROOT}{os.pathsep}{folder}",
    }
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=folder, env=environment, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def test_a_fresh_project_that_follows_the_page_draws_an_image(tmp_path: Path) -> None:
    """Nothing is missing, and nothing has to be guessed."""
    environment = {**os.environ}
    environment.pop("DJANGO_SETTINGS_MODULE", None)
    subprocess.run(
        [sys.executable, "-m", "django", "startproject", "studio", "."],
        cwd=tmp_path, env=environment, timeout=60, check=True,
    )  # fmt: skip
    assert [name for name, _ in FILES] == [
        "studio/settings.py",
        "studio/urls.py",
        "studio/views.py",
        "studio/tests.py",
    ]
    for name, code in FILES:
        with (tmp_path / name).open("a") as file:
            file.write(code)
    assert "no issues" in run(tmp_path, "manage.py", "check")
    run(tmp_path, "manage.py", "migrate")
    assert "Ran 1 test" in run(tmp_path, "manage.py", "test")
    run(tmp_path, "-c", VISIT)


@pytest.mark.parametrize("room", [checks, conf])
def test_the_page_names_every_check(room: object) -> None:
    """And what to do about it."""
    source = Path(str(room.__file__)).read_text(encoding="utf-8")  # type: ignore[attr-defined]
    for name in set(re.findall(r"imagelabs\.[EW]\d+", source)):
        assert f"`{name}`" in PAGE


def test_the_page_names_every_setting() -> None:
    """What is not written down does not exist."""
    clients = sys.modules[Clients.__module__]
    for name in {*clients._KEYS, *conf._LIMITS}:
        assert f"| `{name}` |" in PAGE
