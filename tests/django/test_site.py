"""The example site, started by its one command, as a person with a browser meets it."""

import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from time import monotonic, sleep

import pytest
import requests

SITE = Path(__file__).parents[2] / "examples" / "django_site"
PNG_HEAD = b"\x89PNG\r\n\x1a\n"


class Visitor:
    """A browser without a screen: keeps cookies, and sends a form with its hidden fields."""

    def __init__(self, base: str) -> None:
        self.base, self.session = base, requests.Session()
        self.session.trust_env = False

    def get(self, path: str, accept: str = "text/html") -> requests.Response:
        answer = self.session.get(self.base + path, headers={"Accept": accept}, timeout=20)
        answer.raise_for_status()
        return answer

    def post(self, path: str, **fields: str) -> requests.Response:
        token = {"csrfmiddlewaretoken": self.session.cookies["csrftoken"]}
        answer = self.session.post(self.base + path, {**token, **fields}, timeout=40)
        answer.raise_for_status()
        return answer

    def watch(self, page: str) -> dict[str, object]:
        """What the job's page says once its job has ended."""
        end = monotonic() + 30
        while (told := self.get(page, "application/json").json())["refresh"] is not None:
            assert monotonic() < end, told
            sleep(0.1)
        return dict(told)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("site") / "django_site"
    shutil.copytree(SITE, folder, ignore=shutil.ignore_patterns("var", "__pycache__"))
    settings = folder / "studio" / "settings.py"
    settings.write_text(settings.read_text().replace('"duration": 6.0', '"duration": 0.3'))
    with socket.create_server(("127.0.0.1", 0)) as free:
        address = f"127.0.0.1:{free.getsockname()[1]}"
    log = (folder / "log").open("w")
    command = [sys.executable, str(folder / "manage.py"), "demo", address]
    own = {name: value for name, value in os.environ.items() if not name.startswith("DJANGO_")}
    with log, subprocess.Popen(command, stdout=log, stderr=log, env=own) as process:
        try:
            until_it_answers(address, process, folder / "log")
            yield f"http://{address}"
        finally:
            process.terminate()


def until_it_answers(address: str, process: "subprocess.Popen[bytes]", log: Path) -> None:
    host, _, port = address.partition(":")
    end = monotonic() + 30
    while True:
        assert process.poll() is None, log.read_text()
        assert monotonic() < end, log.read_text()
        try:
            socket.create_connection((host, int(port)), timeout=1).close()
        except OSError:
            sleep(0.05)
        else:
            return


@pytest.fixture
def visitor(site: str) -> Iterator[Visitor]:
    someone = Visitor(site)
    with someone.session:
        someone.get("/")
        yield someone


def test_a_prompt_becomes_an_image_on_a_page_of_its_own(visitor: Visitor) -> None:
    """What a newcomer comes for; and nobody else is shown it."""
    page = visitor.post("/images/", prompt="a lighthouse at dusk")
    path = page.url.removeprefix(visitor.base)
    told = visitor.watch(path)
    assert told["state"] == "done"
    assert visitor.get(str(told["image"])).content.startswith(PNG_HEAD)
    assert "a lighthouse at dusk" in visitor.get("/").text
    stranger = Visitor(visitor.base)
    with stranger.session as session:
        stranger.get("/")
        assert session.get(visitor.base + path, timeout=20).status_code == 404


def test_who_waits_gets_the_image_in_the_answer(visitor: Visitor) -> None:
    """The blocking ways: with a job behind it, and without."""
    for path in ("/wait/", "/download/"):
        answer = visitor.post(path, prompt="a pier", width="64", height="64")
        assert answer.headers["Content-Type"] == "image/png"
        assert answer.content.startswith(PNG_HEAD)


def test_a_batch_is_a_list_that_polls_with_one_request(visitor: Visitor) -> None:
    """A line that cannot be drawn does not stop the others."""
    page = visitor.post("/many/", prompts="a mill\n\na barn\na well")
    assert page.text.count('id="item-') == 3
    assert page.text.count("hx-get=") == 1
    shown = visitor.get("/images/list/", "application/json").json()["jobs"]
    for job in shown:
        assert visitor.watch(job["url"])["state"] == "done"
    assert visitor.get("/").text.count("/thumbnail/") >= 3


def test_a_visitor_tries_again_and_deletes(visitor: Visitor) -> None:
    """From the page of an image."""
    page = visitor.post("/images/", prompt="a mill", width="64", height="64")
    path = page.url.removeprefix(visitor.base)
    visitor.watch(path)
    other = visitor.post(f"{path}again/", id="button").url.removeprefix(visitor.base)
    assert other != path
    assert visitor.post(f"{path}delete/").url.endswith("/images/list/")
    gone = visitor.session.get(visitor.base + path, timeout=20)
    assert gone.status_code == 404
    assert "/images/list/" in gone.text


def test_what_cannot_be_drawn_is_said_beside_the_form(visitor: Visitor) -> None:
    """With what the visitor had typed, and by the field's name."""
    token = {"csrfmiddlewaretoken": visitor.session.cookies["csrftoken"]}
    for path in ("/wait/", "/download/"):
        answer = visitor.session.post(
            visitor.base + path, {**token, "prompt": "a mill", "width": "5000"}, timeout=20
        )
        assert answer.status_code == 422
        assert "a mill" in answer.text
        assert "4096" in answer.text


def test_the_site_runs_under_a_strict_policy(visitor: Visitor) -> None:
    """Nothing inline, nothing from elsewhere."""
    answer = visitor.get("/")
    assert "default-src 'none'" in answer.headers["Content-Security-Policy"]
    assert "style=" not in answer.text
    assert "<script>" not in answer.text
