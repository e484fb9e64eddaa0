"""SIGKILL at every state of a job: of the front here, of a worker in `test_pool`."""

import json
import os
import signal
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from imagelabs_sdk.formats import StructureParser
from imagelabs_sdk.server.engines.base import Recovery
from tests.server.killed import POINTS, service, submit
from tests.server.test_pool import eventually
from tests.server.test_service import rendered

WRITTEN = ("image renamed, row not done", "image written, row not done", "row done, nobody told")
"""From here on the image is there: it is not rendered again, and no job fails any more."""

UNTOUCHED = ("submitted, not answered", "claimed, not sent")
"""The engine has not seen the job yet."""


@contextmanager
def served(folder: Path, recovery: Recovery) -> Iterator[str]:
    again = service(folder, recovery)
    thread = threading.Thread(target=again.run)
    thread.start()
    try:
        yield again.url
    finally:
        again.stop()
        thread.join(30)


def progress(url: str, task_id: str) -> dict[str, Any]:
    body = json.dumps({"task_id": task_id}).encode()
    with urllib.request.urlopen(url + "/progress", body, timeout=30) as response:
        answer: dict[str, Any] = json.load(response)
        return answer


def killed(folder: Path, point: str, recovery: Recovery) -> None:
    """Run a server until it is killed at the point."""
    command = [sys.executable, "-m", "tests.server.killed", point, str(folder), recovery.value]
    assert subprocess.run(command, timeout=60, check=False).returncode == -signal.SIGKILL


def ended(url: str, task_id: str) -> dict[str, Any]:
    answers = [progress(url, task_id)]

    def has_ended() -> bool:
        answers.append(progress(url, task_id))
        status = answers[-1]["status"]
        return str(status).startswith(("Done", "Error"))

    eventually(has_ended)
    return answers[-1]


@pytest.mark.parametrize(
    ("point", "recovery"),
    [(point, Recovery.REPEATABLE) for point in POINTS]
    + [(point, Recovery.NEITHER) for point in ("claimed, not sent", "rendering", *WRITTEN)],
)
def test_a_front_that_is_killed_at_any_point_ends_its_job_once(
    tmp_path: Path, point: str, recovery: Recovery
) -> None:
    """Done, or failed with its reason; no file is left over, and no image is made twice."""
    killed(tmp_path, point, recovery)
    with served(tmp_path, recovery) as url:
        task_id = submit(url)  # the key brings the job that was accepted
        answer = ended(url, task_id)
        if answer["status"] == "Done":
            with urllib.request.urlopen(answer["final_image_url"], timeout=30) as response:
                parser = StructureParser()
                parser.feed(response.read())
            assert parser.complete
    files = os.listdir(tmp_path / "store/images")  # noqa: PTH208
    (tmp_path / "renders").touch()
    renders = (tmp_path / "renders").read_text().splitlines()
    lost = recovery is Recovery.NEITHER and point not in WRITTEN
    attempts = 1 if point in (*WRITTEN, UNTOUCHED[0]) or lost else 2
    assert rendered(tmp_path) == [("failed" if lost else "done", attempts, 0)]
    if lost:
        assert "may have been made" in answer["status"]
        assert files == []
        assert len(renders) <= 1
    else:
        assert files == [f"{task_id}.{attempts}.png"]
        assert answer["info"]["attempt"] == attempts
        assert len(renders) == (1 if point in (*WRITTEN, *UNTOUCHED) else 2)
