"""A server that is killed with SIGKILL at one exact point of one job, once.

``python -m tests.server.killed POINT FOLDER RECOVERY`` serves the engine `Scripted`, submits a
job to itself, and dies at the point. See `POINTS`.
"""

import builtins
import json
import os
import signal
import sys
import threading
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

from imagelabs_sdk.server.engines.base import Recovery
from imagelabs_sdk.server.service import ServeOptions, Service
from imagelabs_sdk.server.store import images, jobs
from imagelabs_sdk.server.store.records import Claim
from tests.server.engines import Scripted


def die(*_: object) -> NoReturn:
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError("the signal has ended the process")


def before(owner: Any, name: str) -> Callable[[], None]:
    return lambda: setattr(owner, name, die)


def after(owner: Any, name: str) -> Callable[[], None]:
    plain = getattr(owner, name)

    def call(*arguments: Any, **named: Any) -> NoReturn:
        plain(*arguments, **named)
        die()

    return lambda: setattr(owner, name, call)


def half_written() -> None:
    """The image's file is open, and half of it has been written."""

    class Half:
        def __init__(self, *arguments: Any, **named: Any) -> None:
            self.file = builtins.open(*arguments, **named)  # noqa: SIM115 - nobody closes it

        def __enter__(self) -> "Half":
            return self

        def __exit__(self, *_: object) -> None:
            pass

        def write(self, data: bytes) -> None:
            self.file.write(data[: len(data) // 2])
            self.file.flush()
            die()

    images.open = Half  # type: ignore[attr-defined]


def after_first_claim() -> None:
    """A claim that finds nothing is none."""
    plain = jobs.JobStore.claim

    def claim(self: jobs.JobStore, engine: Any) -> Claim:
        found = plain(self, engine)
        return die() if found.jobs else found

    jobs.JobStore.claim = claim  # type: ignore[method-assign]


def before_answer() -> None:
    """No worker takes the job meanwhile."""
    jobs.JobStore.claim = lambda *_: Claim()  # type: ignore[method-assign]
    after(jobs.JobStore, "submit")()


POINTS: dict[str, Callable[[], None]] = {
    "submitted, not answered": before_answer,
    "claimed, not sent": after_first_claim,
    "rendering": before(jobs.JobStore, "progress"),
    "image here, not written": before(jobs.JobStore, "finish"),
    "image half written": half_written,
    "image synced, not renamed": after(os, "fsync"),
    "image renamed, row not done": before(images.ImageFiles, "_sync_folder"),
    "image written, row not done": after(images.ImageFiles, "write"),
    "row done, nobody told": after(jobs.JobStore, "finish"),
}
PROMPT = "slow"


def submit(url: str) -> str:
    """Submit the job, always under the same key; return its task id."""
    body = json.dumps({"prompt": PROMPT, "width": 64, "height": 48, "seed": 1}).encode()
    request = urllib.request.Request(url + "/txt2img", body, {"idempotency-key": "one"})
    with urllib.request.urlopen(request, timeout=30) as response:
        return str(json.load(response)["task_id"])


def service(folder: Path, recovery: Recovery) -> Service:
    engine = Scripted(folder, recovery=recovery, in_process=True)
    return Service(engine, ServeOptions(port=0, store=folder / "store", grace=5.0))


if __name__ == "__main__":
    POINTS[sys.argv[1]]()
    served = service(Path(sys.argv[2]), Recovery(sys.argv[3]))
    threading.Thread(target=submit, args=(served.url,), daemon=True).start()
    served.run()
