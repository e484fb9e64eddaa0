"""The protocol's other end, called by hand and through a transport."""

import json
import pickle
import re
import threading
from typing import Any

import pytest

from imagelabs_sdk import (
    HandlerTransport,
    HttpRequest,
    ImageLabs,
    JobFailedError,
    RateLimitError,
    State,
)
from imagelabs_sdk.server.app import LONG_POLL, MAX_BODY, App, Caller, Parked
from imagelabs_sdk.server.options import StoreLimits
from imagelabs_sdk.testing import FakeClock
from tests.server.conftest import BASE, PNG, Easel, Rig, make_rig, request_for

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


# The protocol -------------------------------------------------------------------------


def test_the_answers_are_those_of_the_protocol(rig: Rig) -> None:
    """Other clients than ours read these very names."""
    task_id = rig.submit(**REFERENCE_BODY)
    rig.store.progress(rig.claim(), 0.15, lambda: b"\x89PNG preview")
    assert rig.progress(task_id) == {
        "status": "Processing",
        "progress": 0.15,
        "current_image_url": f"{BASE}/preview/{task_id}.png?15",
        "final_image_url": None,
    }


def test_a_finished_task_names_its_image_and_how_it_was_made(rig: Rig) -> None:
    """At the address that the client itself uses, whatever the server believes to be called."""
    task_id = rig.submit()
    rig.finish()
    found = rig.progress(task_id)
    assert (found["status"], found["current_image_url"]) == ("Done", None)
    assert found["final_image_url"] == f"{BASE}/image/{task_id}.png"
    assert found["info"] == {"engine": "easel"}


def test_a_mounted_application_names_addresses_below_its_mount(rig: Rig) -> None:
    """A site may give it a folder."""
    task_id = rig.answer("/draw/txt2img", {"prompt": "x"})["task_id"]
    rig.finish()
    found = rig.answer("/draw/progress", {"task_id": task_id})
    assert found["final_image_url"] == f"{BASE}/draw/image/{task_id}.png"
    assert rig.ask("GET", f"/draw/image/{task_id}.png").status == 200


def test_who_waits_is_told_the_place_in_the_queue(rig: Rig) -> None:
    """The queue moves on with each job that a worker takes."""
    ids = [rig.submit() for _ in range(3)]
    words = [rig.progress(each)["status"] for each in ids]
    assert words == ["Queue position 1", "Queue position 2", "Queue position 3"]
    rig.claim()
    assert [rig.progress(each)["status"] for each in ids[1:]] == words[:2]


def test_a_failed_job_fails_for_the_client(rig: Rig, time: FakeClock) -> None:
    """At once, in the engine's words: nobody polls it to the deadline."""
    client = ImageLabs(BASE, transport=HandlerTransport(rig.app), polling=time.every(1.0))
    job = client.submit("x")
    rig.store.fail(rig.claim(), "no such model")
    with pytest.raises(JobFailedError, match="Error: no such model"):
        job.result()


def test_seeds_that_were_left_out_are_picked(rig: Rig) -> None:
    """The wire lets them be absent; an engine always gets both."""
    rig.submit()
    rig.submit(seed="7", subseed="8")
    assert rig.claim().request.seed is not None
    second = rig.claim().request
    assert (second.seed, second.subseed) == (7, 8)


def test_task_ids_cannot_be_guessed(rig: Rig) -> None:
    """They are all that stands between an image and a stranger; and a shell takes them as text."""
    ids = {rig.submit() for _ in range(50)}
    assert len(ids) == 50
    assert all(re.fullmatch(r"[0-9a-f]{32}", task_id) for task_id in ids)


# Images -------------------------------------------------------------------------------


def test_images_and_previews_come_with_type_and_length(rig: Rig) -> None:
    """And are not kept by caches on the way: a preview changes, a task is private."""
    task_id = rig.submit()
    job = rig.claim()
    rig.store.progress(job, 0.5, lambda: b"\x89PNG preview")
    preview = rig.app(HttpRequest(method="GET", url=rig.progress(task_id)["current_image_url"]))
    assert preview.read(100) == b"\x89PNG preview"
    rig.finish(job)
    image = rig.ask("GET", f"/image/{task_id}.png")
    assert image.headers["content-length"] == str(len(PNG))
    assert image.read(100) == PNG
    for response in (preview, image):
        assert response.headers["content-type"] == "image/png"
        assert response.headers["cache-control"] == "no-store"
        assert response.headers["x-content-type-options"] == "nosniff"


def test_an_image_keeps_the_format_that_its_engine_gave_it(rig: Rig) -> None:
    """A JPEG under the name of a PNG would be saved under a wrong suffix."""
    task_id = rig.submit()
    rig.store.finish(rig.claim(), b"\xff\xd8\xff", "image/jpeg", {})
    address = rig.progress(task_id)["final_image_url"]
    assert address.endswith(".jpg")
    response = rig.app(HttpRequest(method="GET", url=address))
    assert response.headers["content-type"] == "image/jpeg"


def test_head_tells_the_length_and_sends_nothing(rig: Rig) -> None:
    """As HTTP has it; and an image whose head was asked for is not fetched yet."""
    task_id = rig.submit()
    rig.finish()
    response = rig.ask("HEAD", f"/image/{task_id}.png")
    assert (response.status, response.headers["content-length"]) == (200, str(len(PNG)))
    assert response.read(100) == b""
    assert rig.ask("HEAD", f"/image/{'0' * 32}.png").read(100) == b""


def test_there_is_no_image_before_it_is_done(rig: Rig) -> None:
    """Half an image at the final address would be saved as a whole one."""
    task_id = rig.submit()
    rig.claim()
    assert rig.ask("GET", f"/image/{task_id}.png").status == 404
    assert rig.ask("GET", f"/preview/{task_id}.png").status == 404


def test_an_image_that_is_removed_while_it_is_sent_breaks_off(rig: Rig, time: FakeClock) -> None:
    """It is read as it is sent: a thousand slow readers held a thousand images in memory."""
    task_id = rig.submit()
    job = rig.claim()
    data = PNG + bytes(300 * 1024)
    rig.finish(job, data)
    response = rig.ask("GET", f"/image/{task_id}.png")
    assert response.headers["content-length"] == str(len(data))
    pieces = iter(response.chunks)
    assert next(pieces) == data[: 256 * 1024]
    rig.store.mark_fetched(task_id)
    time.advance(rig.store.limits.keep)
    rig.store.expire()
    with pytest.raises(OSError, match="removed while it was sent"):
        next(pieces)


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
        ("POST", "/cancel", {"task_id": "unknown"}, 404),
        ("GET", "/progress", b"", 405),
        ("GET", "/txt2img", b"", 405),
        ("GET", "/cancel", b"", 405),
        ("PUT", "/txt2img", {"prompt": "x"}, 405),
        ("POST", f"/image/{'0' * 32}.png", b"", 405),
        ("GET", f"/image/{'0' * 32}.png", b"", 404),
        ("GET", f"/preview/{'0' * 32}.png", b"", 404),
        ("GET", "/image/../x.png", b"", 404),
        ("GET", "/image/..%2f..%2fjobs.db", b"", 404),
        ("GET", f"/image/{'0' * 32}.gif", b"", 404),
        ("GET", "/", b"", 404),
        ("GET", "", b"", 404),
        ("POST", "/TXT2IMG", b"", 404),
    ],
)
def test_what_cannot_be_answered_is_refused_with_a_reason(
    rig: Rig, method: str, path: str, body: Any, expected: int
) -> None:
    """As JSON, in the words of `error`: a client shows them to its user."""
    response = rig.ask(method, path, body)
    assert response.status == expected
    assert list(json.loads(response.read(10_000))) == ["error"]


@pytest.mark.parametrize(
    ("path", "allowed"), [("/txt2img", "POST"), (f"/image/{'0' * 32}.png", "GET, HEAD")]
)
def test_a_wrong_method_is_told_the_right_one(rig: Rig, path: str, allowed: str) -> None:
    """405 has to, by RFC 9110."""
    assert rig.ask("PATCH", path).headers["allow"] == allowed


def test_a_malformed_address_is_refused(rig: Rig) -> None:
    """It is made of a Host header, which is the client's."""
    response = rig.app(HttpRequest(method="GET", url="http://[::1/image/x.png"))
    assert response.status == 400


def test_an_engine_may_refuse_a_request() -> None:
    """It knows best what it can render."""
    response = make_rig(Easel(widest=512)).ask("POST", "/txt2img", {"prompt": "x", "width": 513})
    assert response.status == 422
    assert json.loads(response.read(1000)) == {"error": "width: no more than 512 here"}


def test_a_full_server_says_when_to_come_again() -> None:
    """Memory is bounded, and the client's retry finds a 429 with a sane Retry-After."""
    rig = make_rig(limits=StoreLimits(max_jobs=2))
    kept = [rig.submit(), rig.submit()]
    response = rig.ask("POST", "/txt2img", {"prompt": "x"})
    assert (response.status, response.headers["retry-after"]) == (429, "5")
    client = ImageLabs(BASE, transport=HandlerTransport(rig.app), max_retries=0)
    with pytest.raises(RateLimitError) as caught:
        client.submit("x")
    assert caught.value.delivered == "no"
    assert [rig.status(each) for each in kept] == [200, 200]


def test_threads_together_do_not_pass_the_bounds() -> None:
    """Room is checked and taken in one transaction."""
    rig, statuses = make_rig(limits=StoreLimits(max_jobs=10)), []
    start = threading.Barrier(16)

    def submit() -> None:
        start.wait(5.0)
        for _ in range(5):
            statuses.append(rig.ask("POST", "/txt2img", {"prompt": "x"}).status)

    threads = [threading.Thread(target=submit) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (statuses.count(200), statuses.count(429)) == (10, 70)


def test_a_token_has_limits_of_its_own(rig: Rig) -> None:
    """One caller can neither fill the queue nor ask for what takes too long."""
    caller = Caller("alice", max_in_flight=1, max_side=512)

    def submit(**fields: Any) -> int:
        body = {"prompt": "x", "width": 64, "height": 64, **fields}
        response = rig.app.handle(request_for("POST", "/txt2img", body), caller)
        assert not isinstance(response, Parked)
        return response.status

    assert submit(width=513) == 422
    assert submit() == 200
    assert submit() == 429
    assert rig.ask("POST", "/txt2img", {"prompt": "x"}).status == 200
    rig.finish()
    assert submit() == 200


def test_an_application_does_not_pickle_and_says_why(rig: Rig) -> None:
    """A copy would know none of its jobs."""
    with pytest.raises(TypeError, match="its jobs are in this process"):
        pickle.dumps(rig.app)


# What is announced --------------------------------------------------------------------


def test_every_answer_announces_what_the_server_can(rig: Rig) -> None:
    """A client sends no extension that it has not seen announced; refusals count as well."""
    for response in (rig.ask("POST", "/txt2img", {"prompt": "x"}), rig.ask("GET", "/nothing")):
        announced = response.headers["imagelabs-features"]
        assert announced == "idempotency-key, cancel, priority, info"
    parkable = rig.app.handle(request_for("GET", "/nothing"), can_park=True)
    assert not isinstance(parkable, Parked)
    assert parkable.headers["imagelabs-features"].startswith(f"long-poll={LONG_POLL}, ")
    silent = App(rig.store, rig.engine, features=())
    assert "imagelabs-features" not in silent(request_for("GET", "/nothing")).headers


def test_the_same_key_answers_the_same_task(rig: Rig) -> None:
    """A submit whose answer was lost is sent again safely."""
    body = {"prompt": "x"}
    one = rig.answer("/txt2img", body, idempotency_key="k1")
    assert rig.answer("/txt2img", body, idempotency_key="k1") == one
    assert rig.answer("/txt2img", body, idempotency_key="k2") != one
    assert rig.ask("POST", "/txt2img", {"prompt": "y"}, idempotency_key="k1").status == 422
    assert rig.ask("POST", "/txt2img", body, idempotency_key="k\n1").status == 400
    rig.finish()
    assert rig.answer("/txt2img", body, idempotency_key="k1") == one


def test_priority_decides_who_is_rendered_first(rig: Rig) -> None:
    """A page in front of a batch; what cannot be read is normal."""
    late = rig.answer("/txt2img", {"prompt": "x"}, priority="u=5")["task_id"]
    odd = rig.answer("/txt2img", {"prompt": "x"}, priority="u=9, nonsense")["task_id"]
    soon = rig.answer("/txt2img", {"prompt": "x"}, priority="u=1, i")["task_id"]
    assert [rig.claim().id for _ in range(3)] == [soon, odd, late]


def test_a_queued_job_is_cancelled_at_once(rig: Rig) -> None:
    """It ends with a word that clients take for a failure, and is not rendered."""
    task_id = rig.submit()
    assert rig.answer("/cancel", {"task_id": task_id})["status"] == "Cancelled"
    assert rig.progress(task_id)["status"] == "Cancelled"
    assert rig.store.claim(rig.engine).jobs == ()
    client = ImageLabs(BASE, transport=HandlerTransport(rig.app))
    assert client.get_job(task_id).refresh().state is State.FAILED


def test_a_job_that_renders_is_cancelled_and_its_image_dropped(rig: Rig) -> None:
    """Whatever its worker brings later, the job stays cancelled."""
    task_id = rig.submit()
    job = rig.claim()
    assert rig.answer("/cancel", {"task_id": task_id})["status"] == "Cancelled"
    assert not rig.store.is_wanted(job)
    assert not rig.store.finish(job, PNG, "image/png", {})
    assert rig.progress(task_id)["status"] == "Cancelled"
    assert rig.answer("/cancel", {"task_id": task_id})["status"] == "Cancelled"


def test_a_finished_job_cannot_be_cancelled(rig: Rig) -> None:
    """409 says so, with how it stands."""
    task_id = rig.submit()
    rig.finish()
    response = rig.ask("POST", "/cancel", {"task_id": task_id})
    assert response.status == 409
    assert json.loads(response.read(1000))["status"] == "Done"


def test_a_request_that_is_nested_too_deeply_is_refused(rig: Rig) -> None:
    """Each worker that it was sent to died; three of them, and then its job."""
    for depth in (100, 490, 900, 100_000):
        body = b'{"prompt": "x", "pose": ' + b"[" * depth + b"]" * depth + b"}"
        assert rig.ask("POST", "/txt2img", body).status in (400, 422)
    assert rig.store.counts().queued == 0


# Long polls ---------------------------------------------------------------------------


def poll(rig: Rig, task_id: str, etag: str = "", prefer: str = "wait=20") -> Any:
    headers = {"prefer": prefer, **({"if-none-match": etag} if etag else {})}
    request = request_for("POST", "/progress", {"task_id": task_id}, headers)
    return rig.app.handle(request, can_park=True)


def etag_of(rig: Rig, task_id: str) -> str:
    return rig.ask("POST", "/progress", {"task_id": task_id}).headers["etag"]


def test_a_long_poll_is_parked_until_the_state_changes(rig: Rig) -> None:
    """No request is answered before there is something to tell."""
    task_id = rig.submit()
    parked = poll(rig, task_id, etag_of(rig, task_id))
    assert isinstance(parked, Parked)
    assert (parked.task_id, parked.seconds) == (task_id, 20.0)
    assert not parked.is_due(parked.read(), 5.0)
    job = rig.claim()
    assert parked.is_due(parked.read(), 0.0)
    response = parked.answer()
    assert response.headers["preference-applied"] == "wait"
    assert json.loads(response.read(1000))["status"] == "Processing"
    rendering = poll(rig, task_id, response.headers["etag"])
    assert isinstance(rendering, Parked)
    rig.store.progress(job, 0.5)
    assert not rendering.is_due(rendering.read(), 9.0)
    rig.finish(job)
    assert rendering.is_due(rendering.read(), 0.0)


def test_news_of_progress_is_for_who_asks_for_it_and_not_too_often(rig: Rig) -> None:
    """A display wants it; a plain wait would only be woken up."""
    task_id = rig.submit()
    job = rig.claim()
    parked = poll(rig, task_id, etag_of(rig, task_id), "wait=20, progress")
    assert not parked.is_due(parked.read(), 1.0)
    rig.store.progress(job, 0.5)
    assert not parked.is_due(parked.read(), 0.1)
    assert parked.is_due(parked.read(), 0.25)


@pytest.mark.parametrize("named", [True, False])
def test_a_long_poll_for_what_is_known_already_is_answered_at_once(rig: Rig, named: bool) -> None:
    """A state that differs from the one named; or the end, when none was named."""
    task_id = rig.submit()
    etag = etag_of(rig, task_id) if named else ""
    rig.finish()
    response = poll(rig, task_id, etag)
    assert not isinstance(response, Parked)
    assert response.headers["preference-applied"] == "wait"


def test_no_one_is_parked_for_longer_than_is_announced(rig: Rig) -> None:
    """Proxies on the way lose patience."""
    task_id = rig.submit()
    assert poll(rig, task_id, etag_of(rig, task_id), "wait=9999").seconds == LONG_POLL


def test_an_etag_that_is_none_of_ours_names_nothing(rig: Rig) -> None:
    """Also one with a number that Python would not read."""
    task_id = rig.submit()
    rig.claim()
    for etag in ("x", '"queued.0-²"', f'"rendering.1-{"9" * 5000}"', f'"{"9" * 5000}-1"'):
        assert isinstance(poll(rig, task_id, etag), Parked)


def test_a_job_that_is_forgotten_while_a_poll_is_parked_is_told(time: FakeClock) -> None:
    """By the same 404 as to any other poll."""
    rig = make_rig(limits=StoreLimits(keep=10.0), time=time)
    task_id = rig.submit()
    parked = poll(rig, task_id)
    rig.finish()
    time.advance(10.0)
    assert parked.is_due(parked.read(), 0.0)
    assert parked.answer().status == 404


def test_who_cannot_park_gets_a_plain_answer(rig: Rig) -> None:
    """Without the header that says the preference was applied."""
    task_id = rig.submit()
    response = rig.ask("POST", "/progress", {"task_id": task_id}, prefer="wait=20")
    assert response.status == 200
    assert "preference-applied" not in response.headers
