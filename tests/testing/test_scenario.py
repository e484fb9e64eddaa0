"""Scripts in files."""

import json
import signal
import threading
from pathlib import Path
from typing import Any

import pytest

from imagelabs_sdk import ImageLabs, InvalidRequestError, JobFailedError, RateLimitError
from imagelabs_sdk.testing import FakeService, load_scenario
from imagelabs_sdk.testing.scenario import serve_scenario


@pytest.fixture
def script(tmp_path: Path) -> Path:
    return tmp_path / "scenario.json"


def load(script: Path, told: object) -> FakeService:
    script.write_text(json.dumps(told))
    return load_scenario(script)


def test_a_file_says_what_a_test_would_say(script: Path) -> None:
    """All ways to write a step."""
    service = load(
        script,
        {
            "every_job": [{"queued": 2}, {"progress": [0.1, 0.6]}, "done"],
            "jobs": [
                {"prompt": "a dog", "script": [{"fails": "NSFW"}]},
                {"script": [{"rate_limited": {"retry_after": 3}}]},
                {"script": []},
            ],
        },
    )
    client = ImageLabs(
        service.url, transport=service.transport(), poll_interval=0.001, max_retries=0
    )
    with pytest.raises(RateLimitError) as caught:
        client.generate("a cat")
    assert caught.value.retry_after == 3
    assert client.generate("a cat").timings.polls == 1
    with pytest.raises(JobFailedError, match="NSFW"):
        client.generate("a dog")
    assert client.generate("a cat").timings.polls == 5


@pytest.mark.parametrize(
    ("told", "words"),
    [
        ([], "script=.*must be an object"),
        ({"job": []}, "script='job': has only every_job, jobs"),
        ({"every_job": "done"}, "every_job='done': must be a list"),
        ({"every_job": ["finishes"]}, r"every_job\[0\]='finishes': must be a step: challenge, "),
        ({"every_job": ["begin"]}, r"every_job\[0\]='begin': must be a step"),
        ({"every_job": [{"queued": 1, "done": 1}]}, r"every_job\[0\]=.*must be a step"),
        ({"every_job": ["done", {"queued": [1, 2]}]}, r"every_job\[1\]=.*does not take that"),
        ({"every_job": [{"queued": {"poll": 1}}]}, r"every_job\[0\]=.*does not take that"),
        ({"every_job": [{"progress": [2]}]}, r"every_job\[0\]: fractions=2: must be a number"),
        ({"jobs": [{"prompt": 5}]}, r"jobs\[0\].prompt=5: must be text"),
        ({"jobs": [{"steps": []}]}, r"jobs\[0\]='steps': has only prompt, script"),
        ({"jobs": [{"script": [7]}]}, r"jobs\[0\].script\[0\]=7: must be a step"),
    ],
)
def test_a_file_that_makes_no_sense_is_refused_with_its_place(
    script: Path, told: Any, words: str
) -> None:
    """Whoever wrote it should not have to search."""
    with pytest.raises(InvalidRequestError, match=words):
        load(script, told)


def test_a_file_that_is_no_json_is_refused(script: Path) -> None:
    """With the parser's own words."""
    script.write_text("{")
    with pytest.raises(InvalidRequestError, match=r"is no JSON: .*line 1"):
        load_scenario(script)


def test_a_file_is_served_until_ctrl_c(script: Path) -> None:
    """What `imagelabs serve --script` does."""
    script.write_text('{"every_job": [{"fails": "NSFW"}]}')
    failed: list[JobFailedError] = []

    def ask(url: str) -> None:
        try:
            with ImageLabs(url, poll_interval=0.01) as client:
                client.generate("a cat")
        except JobFailedError as error:
            failed.append(error)
        finally:
            signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)

    def ready(url: str) -> None:
        threading.Thread(target=ask, args=(url,)).start()

    serve_scenario(script, port=0, on_ready=ready)
    assert failed[0].status == "Error: NSFW"
