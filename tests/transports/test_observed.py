"""Hooks: each request and its answer, for metrics and traces."""

from collections import Counter
from collections.abc import Callable
from typing import Any

import attrs
import pytest

from imagelabs_sdk import (
    APIConnectionError,
    ImageLabs,
    InvalidRequestError,
    RequestInfo,
    ResponseInfo,
)
from imagelabs_sdk.testing import FakeService
from tests import faulty
from tests.faulty import FaultyServer

Connect = Callable[..., ImageLabs]


@attrs.define
class Tracer:
    """As OpenTelemetry's: spans with a start and an end in nanoseconds."""

    spans: list[tuple[str, int, int, dict[str, Any]]] = attrs.Factory(list)

    def record(self, info: ResponseInfo) -> None:
        start = int(info.request.started_at * 1e9)
        attributes = {"http.response.status_code": info.status, "error.type": info.error}
        name = f"{info.request.method} {info.request.url}"
        self.spans.append((name, start, start + int(info.seconds * 1e9), attributes))


def test_metrics_and_traces_take_ten_lines(server: FaultyServer, connect: Connect) -> None:
    """Counters of one hook, spans of the other; image downloads are among them."""
    counts: Counter[str] = Counter()
    tracer = Tracer()

    def count(info: RequestInfo) -> None:
        counts[info.url.rpartition("/")[2]] += 1

    client = connect(server, on_request=count, on_response=tracer.record)
    client.generate("a lighthouse").read()
    assert counts == {"txt2img": 1, "progress": 1, "image.png": 1}
    assert [name for name, *_ in tracer.spans] == [
        f"POST {server.url}/txt2img",
        f"POST {server.url}/progress",
        f"GET {server.url}/image.png",
    ]
    assert all(start <= end for _, start, end, _ in tracer.spans)
    assert {spans[-1]["http.response.status_code"] for spans in tracer.spans} == {200}


def test_a_request_without_an_answer_is_reported_too(
    server: FaultyServer, connect: Connect
) -> None:
    """With the code of the error."""
    server.scripts["/progress"] = [faulty.reset()]
    told: list[ResponseInfo] = []
    with pytest.raises(APIConnectionError):
        connect(server, on_response=told.append).get_job("task-1").refresh()
    assert [(info.status, info.error) for info in told] == [(None, "api_connection")]


def test_hooks_see_no_secret(server: FaultyServer, connect: Connect) -> None:
    """What they get goes to places where no cookie, prompt or signed query belongs."""
    server.scripts["/progress"] = [server.done(f"{server.url}/image.png?sig=hush")]
    told: list[object] = []
    client = connect(
        server, cookies="session=hush", on_request=told.append, on_response=told.append
    )
    client.generate("a hush").read()
    assert len(told) == 6
    assert "hush" not in repr(told)


def test_a_hook_that_fails_loses_no_job(caplog: pytest.LogCaptureFixture) -> None:
    """A metric is worth less than an image."""

    def broken(info: object) -> None:
        raise ZeroDivisionError

    client = FakeService().client(on_request=broken, on_response=broken)
    assert client.generate("x").task_id == "task-1"
    assert "a hook failed" in caplog.text


def test_without_hooks_there_is_nothing_between() -> None:
    """What is not used costs nothing."""
    service = FakeService()
    plain, hooked = service.client(), service.client(on_request=print)
    assert plain._context.transport != hooked._context.transport
    assert plain._context.transport is plain._transport


@pytest.mark.parametrize("name", ["on_request", "on_response"])
def test_a_hook_that_cannot_be_called_is_refused(name: str) -> None:
    """When the client is made."""
    with pytest.raises(InvalidRequestError) as caught:
        ImageLabs(**{name: "print"})  # type: ignore[arg-type]
    assert (caught.value.field, caught.value.code) == (name, "not_callable")


def test_the_transport_of_a_client_with_hooks_is_closed_with_it(
    server: FaultyServer, connect: Connect
) -> None:
    """No connection is left open."""
    with connect(server, on_request=print) as client:
        client.get_job("task-1").refresh()
