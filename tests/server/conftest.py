"""A server whose worker is the test itself."""

import json
from collections.abc import Hashable
from typing import Any

import attrs
import pytest

from imagelabs_sdk import HttpRequest, HttpResponse, ImageRequest, InvalidRequestError
from imagelabs_sdk.server.app import App
from imagelabs_sdk.server.engines.base import Engine, Recovery, RenderJob
from imagelabs_sdk.server.options import StoreLimits
from imagelabs_sdk.server.store.jobs import JobStore
from imagelabs_sdk.testing import FakeClock

BASE = "http://imagelabs.test"
PNG = b"\x89PNG\r\n\x1a\n an image, or so it looks"


@attrs.frozen
class Easel:
    """An engine's settings; the rendering is done by the test."""

    name: str = "easel"
    recovery: Recovery = Recovery.REPEATABLE
    max_batch: int = 1
    batch_wait: float = 0.0
    workers: int = 1
    in_process: bool = True
    widest: int = 4096

    def check(self, request: ImageRequest) -> None:
        if request.width > self.widest:
            raise InvalidRequestError(f"width: no more than {self.widest} here", field="width")

    def batch_key(self, request: ImageRequest) -> Hashable:
        return request.width, request.height

    def load(self, worker: int) -> Engine:
        raise AssertionError("the test renders")


@attrs.frozen
class Rig:
    """An App, its store and its engine, and the means to drive them."""

    store: JobStore
    engine: Easel
    app: App

    def ask(self, method: str, path: str, body: Any = b"", **headers: str) -> HttpResponse:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return self.app(request_for(method, path, body, named))

    def answer(self, path: str, body: Any, **headers: str) -> dict[str, Any]:
        response = self.ask("POST", path, body, **headers)
        assert response.status == 200
        assert response.headers["content-type"] == "application/json"
        found: dict[str, Any] = json.loads(response.read(10_000))
        return found

    def submit(self, **fields: Any) -> str:
        task_id = self.answer("/txt2img", {"prompt": "x", **fields})["task_id"]
        assert isinstance(task_id, str)
        return task_id

    def progress(self, task_id: str) -> dict[str, Any]:
        return self.answer("/progress", {"task_id": task_id})

    def status(self, task_id: str) -> int:
        return self.ask("POST", "/progress", {"task_id": task_id}).status

    def claim(self) -> RenderJob:
        (job,) = self.store.claim(self.engine).jobs
        return job

    def finish(self, job: RenderJob | None = None, data: bytes = PNG) -> RenderJob:
        job = job or self.claim()
        assert self.store.finish(job, data, "image/png", {"engine": "easel"})
        return job


def request_for(
    method: str, path: str, body: Any = b"", headers: dict[str, str] | None = None
) -> HttpRequest:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    return HttpRequest(method=method, url=BASE + path, body=data, headers=headers or {})


def make_rig(
    engine: Easel | None = None, limits: StoreLimits | None = None, time: FakeClock | None = None
) -> Rig:
    store = JobStore.in_memory(limits, clock=(time or FakeClock()).now)
    engine = engine or Easel()
    return Rig(store, engine, App(store, engine))


@pytest.fixture
def time() -> FakeClock:
    return FakeClock()


@pytest.fixture
def rig(time: FakeClock) -> Rig:
    return make_rig(time=time)
