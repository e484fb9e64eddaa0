"""The other end of the protocol, by hand, through a transport, and over a socket."""

import gc
import http.client
import io
import json
import pickle
import re
import shutil
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from wsgiref.validate import validator

import attrs
import pytest

from imagelabs_sdk import (
    Deadline,
    HandlerTransport,
    HttpRequest,
    HttpResponse,
    ImageLabs,
    ImageRequest,
    InvalidRequestError,
    JobFailedError,
    RateLimitError,
    State,
)
from imagelabs_sdk.server import http as server_http
from imagelabs_sdk.server.app import MAX_BODY, App
from imagelabs_sdk.server.engines.landscape import LandscapeEngine
from imagelabs_sdk.server.engines.render import RenderStatus
from imagelabs_sdk.server.http import Server, running, serve, wsgi
from tests.conftest import FakeTime
from tests.faulty import PNG

BASE = "http://imagelabs.test"
SMALL = ImageRequest("a lighthouse at dusk", width=64, height=48, seed=1, subseed=2)
REFERENCE_BODY = {
    "prompt": "a lighthouse",
    "seed": "1700000000",
    "subseed": "1700000000000",
    "attention": 0,
    "width": 1152,
    "height": 896,
    "tiling": False,
    "negative_prompt": "",
    "reference_image": "",
    "reference_image_type": None,
    "reference_strength": 30,
}
"""What the reference provider sends, field by field."""

RUNNING = RenderStatus(State.RUNNING, "Step 3 of 20", 0.15, has_preview=True)
DONE = RenderStatus(State.DONE)


@attrs.define
class Easel:
    """An engine of which a test says how its drawings stand."""

    now: RenderStatus = DONE
    data: bytes = PNG
    requests: list[ImageRequest] = attrs.Factory(list)
    asked: int = 0
    drawn: int = 0
    meanwhile: Callable[[], object] = lambda: None

    def start(self, request: ImageRequest) -> "Easel":
        self.requests.append(request)
        return self

    def standing(self) -> RenderStatus:
        self.asked += 1
        return self.now

    def preview(self) -> bytes | None:
        return b"\x89PNG preview" if self.now.has_preview else None

    def image(self) -> bytes:
        self.drawn += 1
        self.meanwhile()
        return self.data


def ask(app: App, method: str, path: str, body: Any = b"") -> HttpResponse:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    return app(HttpRequest(method=method, url=BASE + path, body=data))


def answer(app: App, path: str, body: Any) -> dict[str, Any]:
    response = ask(app, "POST", path, body)
    assert response.status == 200
    assert response.headers["content-type"] == "application/json"
    found: dict[str, Any] = json.loads(response.read(10_000))
    return found


def submitted(app: App, **fields: Any) -> str:
    task_id = answer(app, "/txt2img", {"prompt": "x", **fields})["task_id"]
    assert isinstance(task_id, str)
    return task_id


def progress(app: App, task_id: str) -> dict[str, Any]:
    return answer(app, "/progress", {"task_id": task_id})


def status(app: App, task_id: str) -> int:
    return ask(app, "POST", "/progress", {"task_id": task_id}).status


def in_threads(count: int, work: Callable[[int], object]) -> None:
    threads = [threading.Thread(target=work, args=(i,)) for i in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


# The protocol -------------------------------------------------------------------------


def test_the_whole_way_through_a_transport(time: FakeTime) -> None:
    """Queued, drawn with previews, done: the client sees each as the service would show it."""
    engine = LandscapeEngine(duration=4.0, workers=1, clock=time.clock)
    transport = HandlerTransport(App(engine, clock=time.clock))
    client = ImageLabs(BASE, transport=transport, polling=time.every(2.0))
    ahead, job = client.submit(SMALL), client.submit(SMALL)
    seen = list(job.events())
    assert [each.state for each in seen] == [State.QUEUED, *[State.RUNNING] * 2, State.DONE]
    assert [each.fraction for each in seen] == [0.0, 0.0, 0.5, 1.0]
    assert [each.status for each in seen][::3] == ["Queue position 1", "Done"]
    assert [bool(each.preview_url) for each in seen] == [False, True, True, False]
    assert job.image().read() == engine.start(SMALL).image()
    assert ahead.result().read() == job.image().read()


def test_the_answers_are_those_of_the_protocol() -> None:
    """Other clients than ours read these very names."""
    app = App(Easel(RUNNING))
    task_id = submitted(app)
    assert progress(app, task_id) == {
        "status": "Step 3 of 20",
        "progress": 0.15,
        "current_image_url": f"{BASE}/preview/{task_id}.png?15",
        "final_image_url": None,
    }


def test_a_finished_task_names_its_image() -> None:
    """At the address that the client itself uses, whatever the server believes to be called."""
    app = App(Easel(DONE))
    task_id = submitted(app)
    found = progress(app, task_id)
    assert (found["status"], found["current_image_url"]) == ("Done", None)
    assert found["final_image_url"] == f"{BASE}/image/{task_id}.png"


def test_a_mounted_application_names_addresses_below_its_mount() -> None:
    """A site may give it a folder."""
    app = App(Easel(DONE))
    task_id = answer(app, "/draw/txt2img", {"prompt": "x"})["task_id"]
    found = answer(app, "/draw/progress", {"task_id": task_id})
    assert found["final_image_url"] == f"{BASE}/draw/image/{task_id}.png"
    assert ask(app, "GET", f"/draw/image/{task_id}.png").status == 200


@pytest.mark.parametrize(
    ("standing", "word"),
    [
        (RenderStatus(State.FAILED), "Error: the drawing failed"),
        (RenderStatus(State.FAILED, "out of memory"), "Error: out of memory"),
        (RenderStatus(State.QUEUED), "queued"),
        (RenderStatus(State.RUNNING), "running"),
    ],
)
def test_the_status_is_one_that_clients_understand(standing: RenderStatus, word: str) -> None:
    """Failures contain "error", and what goes on contains neither that nor "Done"."""
    app = App(Easel(standing))
    client = ImageLabs(BASE, transport=HandlerTransport(app))
    seen = client.submit("x").refresh()
    assert (seen.status, seen.state) == (word, standing.state)


def test_a_failed_drawing_fails_the_job(time: FakeTime) -> None:
    """At once: nobody polls it to the deadline."""
    app = App(Easel(RenderStatus(State.FAILED, "no such model")))
    client = ImageLabs(BASE, transport=HandlerTransport(app), polling=time.every(1.0))
    with pytest.raises(JobFailedError, match="no such model"):
        client.generate("x")


def test_seeds_that_were_left_out_are_picked() -> None:
    """The wire lets them be absent; an engine always gets both."""
    easel = Easel()
    submitted(App(easel))
    submitted(App(easel), seed="7", subseed="8")
    assert easel.requests[0].seed is not None
    assert easel.requests[0].subseed is not None
    assert (easel.requests[1].seed, easel.requests[1].subseed) == (7, 8)


def test_task_ids_cannot_be_guessed() -> None:
    """They are all that stands between an image and a stranger; and a shell takes them as text."""
    app = App(Easel())
    ids = {submitted(app) for _ in range(50)}
    assert len(ids) == 50
    assert all(re.fullmatch(r"[0-9a-f]{32}", task_id) for task_id in ids)


# Images -----------------------------------------------------------------------------


def test_images_and_previews_come_with_type_and_length() -> None:
    """And are not kept by caches on the way: a preview changes, a task is private."""
    easel = Easel(RUNNING)
    app = App(easel)
    task_id = submitted(app)
    address = progress(app, task_id)["current_image_url"]
    preview = app(HttpRequest(method="GET", url=address))
    easel.now = DONE
    image = ask(app, "GET", f"/image/{task_id}.png")
    for response, data in ((preview, b"\x89PNG preview"), (image, easel.data)):
        assert response.headers["content-type"] == "image/png"
        assert response.headers["content-length"] == str(len(data))
        assert response.headers["cache-control"] == "no-store"
        assert response.read(100) == data


def test_head_tells_the_length_and_sends_nothing() -> None:
    """As HTTP has it."""
    easel = Easel()
    app = App(easel)
    response = ask(app, "HEAD", f"/image/{submitted(app)}.png")
    assert (response.status, response.headers["content-length"]) == (200, str(len(easel.data)))
    assert response.read(100) == b""
    assert ask(app, "HEAD", "/image/unknown.png").read(100) == b""


def test_there_is_no_image_before_it_is_done() -> None:
    """Half an image at the final address would be saved as a whole one."""
    easel = Easel(RenderStatus(State.RUNNING))
    app = App(easel)
    task_id = submitted(app)
    assert ask(app, "GET", f"/image/{task_id}.png").status == 404
    assert ask(app, "GET", f"/preview/{task_id}.png").status == 404
    assert easel.drawn == 0


# Refusals -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "path", "body", "expected"),
    [
        ("POST", "/txt2img", b"{", 400),
        ("POST", "/txt2img", b"[]", 400),
        ("POST", "/txt2img", b"[" * 100_000, 400),
        ("POST", "/txt2img", {}, 422),
        ("POST", "/txt2img", {"prompt": " "}, 422),
        ("POST", "/txt2img", {"prompt": "x", "width": 0}, 422),
        ("POST", "/txt2img", {"prompt": "x", "width": "512"}, 422),
        ("POST", "/txt2img", {"prompt": "x", "seed": "-1"}, 422),
        ("POST", "/txt2img", {"prompt": "x" * MAX_BODY}, 413),
        ("POST", "/progress", b"", 400),
        ("POST", "/progress", {}, 422),
        ("POST", "/progress", {"task_id": None}, 422),
        ("POST", "/progress", {"task_id": "unknown"}, 404),
        ("GET", "/progress", b"", 405),
        ("GET", "/txt2img", b"", 405),
        ("PUT", "/txt2img", {"prompt": "x"}, 405),
        ("POST", "/image/x.png", b"", 405),
        ("GET", "/image/x.png", b"", 404),
        ("GET", "/preview/x.png", b"", 404),
        ("GET", "/image/../x.png", b"", 404),
        ("GET", "/image/x.gif", b"", 404),
        ("GET", "/", b"", 404),
        ("GET", "", b"", 404),
        ("POST", "/TXT2IMG", b"", 404),
    ],
)
def test_what_cannot_be_answered_is_refused_with_a_reason(
    method: str, path: str, body: Any, expected: int
) -> None:
    """As JSON, in the words of `error`: a client shows them to its user."""
    response = ask(App(Easel()), method, path, body)
    assert response.status == expected
    assert list(json.loads(response.read(10_000))) == ["error"]


@pytest.mark.parametrize(("path", "allowed"), [("/txt2img", "POST"), ("/image/x.png", "GET, HEAD")])
def test_a_wrong_method_is_told_the_right_one(path: str, allowed: str) -> None:
    """405 has to, by RFC 9110."""
    assert ask(App(Easel()), "PATCH", path).headers["allow"] == allowed


def test_a_malformed_address_is_refused() -> None:
    """It is made of a Host header, which is the client's."""
    response = App(Easel())(HttpRequest(method="GET", url="http://[::1/image/x.png"))
    assert response.status == 400


def test_an_engine_may_refuse_a_request() -> None:
    """It knows best what it can draw."""

    class Picky(Easel):
        def start(self, request: ImageRequest) -> Easel:
            raise InvalidRequestError("width: no more than 512 here", field="width")

    response = ask(App(Picky()), "POST", "/txt2img", {"prompt": "x"})
    assert response.status == 422
    assert json.loads(response.read(1000)) == {"error": "width: no more than 512 here"}


# Bounds -------------------------------------------------------------------------------


def test_an_ended_job_is_forgotten_after_a_while(time: FakeTime) -> None:
    """Counted from when somebody saw its end: whoever comes late has the same time to fetch it."""
    easel = Easel(RUNNING)
    app = App(easel, keep=60.0, clock=time.clock)
    task_id = submitted(app)
    time.now += 1000.0
    assert status(app, task_id) == 200
    easel.now = DONE
    assert status(app, task_id) == 200
    time.now += 59.0
    assert status(app, task_id) == 200
    time.now += 1.0
    assert status(app, task_id) == 404
    assert ask(app, "GET", f"/image/{task_id}.png").status == 404


def test_the_job_that_ended_first_makes_room(time: FakeTime) -> None:
    """A finished image is fetched soon or never; an unfinished one is still wanted."""
    easels = iter([Easel(RUNNING), Easel(DONE), Easel(DONE), Easel(DONE)])

    class Many(Easel):
        def start(self, request: ImageRequest) -> Easel:
            return next(easels)

    app = App(Many(), max_jobs=3, clock=time.clock)
    going, late, early = (submitted(app) for _ in range(3))
    assert [status(app, early), status(app, late)] == [200, 200]
    newest = submitted(app)
    assert [status(app, each) for each in (going, early, late, newest)] == [200, 404, 200, 200]


def test_a_full_house_says_when_to_come_again() -> None:
    """Memory is bounded, and the client's retry finds a 429 with a sane Retry-After."""
    easel = Easel(RUNNING)
    app = App(easel, max_jobs=2)
    kept = [submitted(app), submitted(app)]
    response = ask(app, "POST", "/txt2img", {"prompt": "x"})
    assert (response.status, response.headers["retry-after"]) == (429, "5")
    assert len(easel.requests) == 2
    client = ImageLabs(BASE, transport=HandlerTransport(app), max_retries=0)
    with pytest.raises(RateLimitError) as caught:
        client.submit("x")
    assert caught.value.delivered == "no"
    assert [status(app, each) for each in kept] == [200, 200]


def test_jobs_that_ended_while_nobody_looked_make_room_too() -> None:
    """Clients go away; their jobs end all the same."""
    easel = Easel(RUNNING)
    app = App(easel, max_jobs=2)
    abandoned = [submitted(app), submitted(app)]
    easel.now = DONE
    submitted(app)
    assert sorted(status(app, each) for each in abandoned) == [200, 404]


def test_an_image_is_drawn_once_as_long_as_there_is_room_for_it() -> None:
    """And again when there is not: bytes are bounded, the least recently fetched go first."""
    easel = Easel()
    app = App(easel, cache_bytes=2 * len(easel.data))
    one, two, three = (f"/image/{submitted(app)}.png" for _ in range(3))
    for path, drawn in ((one, 1), (two, 2), (one, 2), (three, 3), (one, 3), (two, 4), (three, 5)):
        assert ask(app, "GET", path).read(100) == easel.data
        assert easel.drawn == drawn


def test_an_image_that_is_larger_than_the_cache_is_not_kept() -> None:
    """Nor does it drive the others out."""
    easel = Easel()
    app = App(easel, cache_bytes=0)
    path = f"/image/{submitted(app)}.png"
    assert ask(app, "GET", path).status == ask(app, "GET", path).status == 200
    assert easel.drawn == 2


# Threads ------------------------------------------------------------------------------


def test_an_image_that_many_want_at_once_is_drawn_once() -> None:
    """A page with the same image twice must not cost twice."""
    easel, found = Easel(), []
    app = App(easel)
    path = f"/image/{submitted(app)}.png"
    start = threading.Barrier(16)

    def fetch(_: int) -> None:
        start.wait(5.0)
        found.append(ask(app, "GET", path).read(100))

    in_threads(16, fetch)
    assert found == [easel.data] * 16
    assert easel.drawn == 1


def test_others_are_answered_while_an_image_is_drawn() -> None:
    """Render takes a second; polling must not wait for it."""
    drawing, go_on = threading.Event(), threading.Event()

    def busy() -> None:
        drawing.set()
        assert go_on.wait(5.0)

    app = App(Easel(meanwhile=busy))
    task_id = submitted(app)
    thread = threading.Thread(target=ask, args=(app, "GET", f"/image/{task_id}.png"))
    thread.start()
    assert drawing.wait(5.0)
    assert status(app, task_id) == 200
    assert status(app, submitted(app)) == 200
    go_on.set()
    thread.join()


def test_threads_together_do_not_pass_the_bounds() -> None:
    """Room is made and taken under one door."""
    easel, statuses = Easel(RUNNING), []
    app = App(easel, max_jobs=10)
    start = threading.Barrier(16)

    def submit(_: int) -> None:
        start.wait(5.0)
        for _ in range(5):
            statuses.append(ask(app, "POST", "/txt2img", {"prompt": "x"}).status)

    in_threads(16, submit)
    assert (statuses.count(200), statuses.count(429)) == (10, 70)


def test_threads_and_eviction_get_along() -> None:
    """Every answer is an image or an honest 404; nothing is raised."""
    app, statuses = App(Easel(), max_jobs=3, cache_bytes=100), []

    def work(_: int) -> None:
        for _ in range(50):
            task_id = submitted(app)
            statuses.append(status(app, task_id))
            statuses.append(ask(app, "GET", f"/image/{task_id}.png").status)

    in_threads(8, work)
    assert len(statuses) == 800
    assert set(statuses) <= {200, 404}
    assert 200 in statuses


def test_a_task_that_is_evicted_while_it_is_polled_stays_forgotten(time: FakeTime) -> None:
    """The poll comes too late to note its end; nothing may remember it for ever."""
    app = App(Easel(), max_jobs=1, clock=time.clock)

    class Late(Easel):
        def standing(self) -> RenderStatus:
            standing = super().standing()
            if self.asked == 1:
                submitted(app)  # asks again, sees it ended, and takes its place
            return standing

    app = App(Late(), max_jobs=1, clock=time.clock)
    task_id = submitted(app)
    assert status(app, task_id) == 200
    assert status(app, task_id) == 404
    time.now += 10_000.0
    assert status(app, task_id) == 404
    assert submitted(app)


def test_an_application_does_not_pickle_and_says_why() -> None:
    """A copy would know none of its jobs."""
    with pytest.raises(TypeError, match="its jobs are in this process"):
        pickle.dumps(App(Easel()))


# WSGI ---------------------------------------------------------------------------------


def called(application: Any, **environ: Any) -> tuple[str, dict[str, str], bytes]:
    """One call by the rules of WSGI, which the standard library's validator watches."""
    started: list[Any] = []

    def start_response(status: str, headers: Any, exc_info: Any = None) -> Any:
        started.extend([status, {name.lower(): value for name, value in headers}])

    full = {
        "REQUEST_METHOD": "POST",
        "SCRIPT_NAME": "",
        "PATH_INFO": "/txt2img",
        "QUERY_STRING": "",
        "SERVER_NAME": "imagelabs.test",
        "SERVER_PORT": "80",
        "SERVER_PROTOCOL": "HTTP/1.1",
        "wsgi.version": (1, 0),
        "wsgi.url_scheme": "http",
        "wsgi.input": io.BytesIO(b'{"prompt": "x"}'),
        "wsgi.errors": io.StringIO(),
        "wsgi.multithread": True,
        "wsgi.multiprocess": False,
        "wsgi.run_once": False,
        **environ,
    }
    result = validator(application)(full, start_response)
    try:
        body = b"".join(result)
    finally:
        result.close()  # type: ignore[attr-defined]
    return started[0], started[1], body


def test_a_mounted_wsgi_application_hears_its_whole_address() -> None:
    """Scheme, host, mount and path make the address that images are beside."""
    heard = []

    def handler(request: HttpRequest) -> HttpResponse:
        heard.append(request)
        return HttpResponse(200, {"content-type": "text/plain"}, iter([b"a", b"b"]))

    found = called(
        wsgi(handler),
        SCRIPT_NAME="/draw",
        HTTP_HOST="x.example:8443",
        HTTP_X_REQUESTED_WITH="XMLHttpRequest",
        CONTENT_TYPE="application/json",
        CONTENT_LENGTH="15",
        **{"wsgi.url_scheme": "https"},
    )
    assert found == ("200 OK", {"content-type": "text/plain"}, b"ab")
    (request,) = heard
    assert (request.method, request.body) == ("POST", b'{"prompt": "x"}')
    assert request.url == "https://x.example:8443/draw/txt2img"
    assert request.headers["x-requested-with"] == "XMLHttpRequest"
    assert request.headers["content-type"] == "application/json"


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({"CONTENT_LENGTH": "15"}, b'{"prompt": "x"}'),
        ({"CONTENT_LENGTH": "3"}, b'{"p'),
        ({"CONTENT_LENGTH": ""}, b""),
        ({"CONTENT_LENGTH": "9" * 30}, b""),
        ({}, b""),
        ({"wsgi.input_terminated": True}, b'{"prompt": "x"}'),
    ],
)
def test_a_body_is_read_as_far_as_it_is_known_to_go(
    environ: dict[str, Any], expected: bytes
) -> None:
    """Reading on would wait for a client that has said everything."""
    heard = []

    def handler(request: HttpRequest) -> HttpResponse:
        heard.append(request.body)
        return HttpResponse(200, {"content-type": "text/plain"})

    called(wsgi(handler), **environ)
    assert heard == [expected]


def test_a_body_that_is_too_long_is_read_no_further_than_needed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The application refuses it; the rest stays in the socket."""
    monkeypatch.setattr(server_http, "MAX_BODY", 10)
    monkeypatch.setattr("imagelabs_sdk.server.app.MAX_BODY", 10)
    stream = io.BytesIO(b'{"prompt": "x"}')
    application = wsgi(App(Easel()))
    environ = {"CONTENT_LENGTH": "15", "wsgi.input": stream}
    assert called(application, **environ)[0].startswith("413 ")
    assert stream.tell() == 11


def test_a_response_is_closed_when_it_was_sent() -> None:
    """It may hold a file or a connection."""
    closed = []
    response = HttpResponse(
        200, {"content-type": "text/plain"}, b"x", on_close=lambda: closed.append(1)
    )
    called(wsgi(lambda request: response))
    assert closed == [1]


# A socket -----------------------------------------------------------------------------


def alive() -> set[str]:
    """Names of threads that a server may have left behind."""
    return {
        thread.name
        for thread in threading.enumerate()
        if re.match("waitress|imagelabs", thread.name)
    }


@pytest.fixture
def nothing_left() -> Any:
    """No thread and no socket outlives a server; pytest makes an error of a ResourceWarning."""
    yield
    for thread in threading.enumerate():
        if thread.name.startswith("waitress"):
            thread.join(5.0)  # it has been told to end
    assert alive() == set()
    gc.collect()


@pytest.mark.usefixtures("nothing_left")
def test_over_a_socket_come_the_same_bytes() -> None:
    """The socket is only another way for the same messages."""
    engine = LandscapeEngine(duration=0)
    with running(App(engine)) as url, ImageLabs(url, poll_interval=0.01) as client:
        assert url.startswith("http://127.0.0.1:")
        image = client.generate(SMALL)
        assert image.url.startswith(url + "/image/")
        assert image.read() == engine.start(SMALL).image()


@pytest.mark.usefixtures("nothing_left")
@pytest.mark.skipif(shutil.which("curl") is None, reason="there is no curl here")
def test_curl_with_the_reference_body_gets_an_image(tmp_path: Path) -> None:
    """Any client of the service is a client of this server."""

    def curl(*arguments: str) -> bytes:
        command = ["curl", "--silent", "--fail", "--noproxy", "*", "--max-time", "10", *arguments]
        return subprocess.run(command, check=True, capture_output=True).stdout

    def post(url: str, body: object) -> Any:
        header = "content-type: application/json"
        return json.loads(curl("--header", header, "--data", json.dumps(body), url))

    with running(App(LandscapeEngine(duration=0))) as url:
        task = post(url + "/txt2img", REFERENCE_BODY)
        done = post(url + "/progress", task)
        assert done["status"] == "Done"
        curl("--output", str(tmp_path / "x.png"), done["final_image_url"])
        head = curl("--head", done["final_image_url"]).decode().lower()
    data = (tmp_path / "x.png").read_bytes()
    assert data.startswith(b"\x89PNG")
    assert int.from_bytes(data[16:20], "big") == 1152
    assert int.from_bytes(data[20:24], "big") == 896
    assert f"content-length: {len(data)}" in head


@pytest.mark.usefixtures("nothing_left")
def test_a_body_that_is_announced_too_long_is_not_even_read() -> None:
    """The answer comes before the body is sent."""
    with running(App(Easel())) as url:
        connection = http.client.HTTPConnection("127.0.0.1", urlsplit(url).port or 0, timeout=5.0)
        connection.putrequest("POST", "/txt2img")
        connection.putheader("content-length", str(MAX_BODY + 1))
        connection.endheaders()
        response = connection.getresponse()
        assert response.status == 413
        response.read()
        connection.close()


@pytest.mark.usefixtures("nothing_left")
def test_many_threads_are_served_without_a_word(caplog: pytest.LogCaptureFixture) -> None:
    """More of them than there are threads behind the socket: that is no event to be logged."""
    found = []
    with running(App(Easel())) as url, ImageLabs(url, poll_interval=0.01) as client:
        in_threads(16, lambda i: found.append(client.generate(f"number {i}").read()))
    assert len(found) == 16
    assert "queue" not in caplog.text


@pytest.mark.usefixtures("nothing_left")
def test_serve_says_where_it_listens_and_ends_with_ctrl_c() -> None:
    """The command line prints the address; Ctrl-C is its usual end and no error."""
    ready = []

    def interrupt(url: str) -> None:
        ready.append(url)
        raise KeyboardInterrupt

    serve(App(Easel()), port=0, on_ready=interrupt)
    assert re.fullmatch(r"http://127\.0\.0\.1:[1-9]\d*", ready[0])


@pytest.mark.usefixtures("nothing_left")
def test_serve_ends_with_ctrl_c_while_it_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    """The interrupt comes out of the loop, wherever that is."""

    def interrupted(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("waitress.wasyncore.loop", interrupted)
    serve(App(Easel()), port=0)


@pytest.mark.usefixtures("nothing_left")
def test_a_port_that_is_taken_is_an_error_and_leaves_nothing() -> None:
    """No thread has been started by then."""
    with running(App(Easel())) as url, pytest.raises(OSError, match="in use"):
        serve(App(Easel()), port=urlsplit(url).port or 0)


@pytest.mark.usefixtures("nothing_left")
def test_a_server_may_be_stopped_twice_or_never_run() -> None:
    """Cleaning up must not need to know how far it came."""
    server = Server(App(Easel()), port=0)
    server.stop()
    server.run()
    server.stop()
    server.close()


@pytest.mark.usefixtures("nothing_left")
def test_it_listens_on_ipv6_as_well() -> None:
    """The address in the URL needs its brackets."""
    try:
        server = Server(App(Easel()), host="::1", port=0)
    except OSError:
        pytest.skip("there is no IPv6 here")
    assert re.fullmatch(r"http://\[::1\]:\d+", server.url)
    server.close()


def test_the_answer_over_a_transport_obeys_its_deadline() -> None:
    """A handler is a transport like any other."""
    transport = HandlerTransport(App(Easel()))
    request = HttpRequest(method="GET", url=BASE + "/")
    with transport.send(request, deadline=Deadline.after(1.0)) as response:
        assert response.status == 404
