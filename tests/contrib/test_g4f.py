"""The asynchronous provider: same promises, and an event loop that never stands still."""

import asyncio
import json
import threading
from collections.abc import Callable, Coroutine
from itertools import count
from typing import Any, TypeVar

import pytest

from imagelabs_sdk import (
    APITimeoutError,
    Backoff,
    FixedInterval,
    HttpRequest,
    HttpResponse,
    ImageRequest,
    InvalidRequestError,
    Job,
    JobFailedError,
    JobTimeoutError,
    RateLimitError,
)
from imagelabs_sdk import ImageLabs as Client
from imagelabs_sdk.contrib.g4f import ImageLabs, ImageResponse
from imagelabs_sdk.testing import FakeService
from imagelabs_sdk.testing.script import Answer
from tests.faulty import FaultyServer, reply

T = TypeVar("T")

HANGS = 10.0  # seconds after which a test that should not wait has failed
ONE_POLL = ["submit", "progress"]


def url_of(task: str) -> str:
    return f"https://imagelabs.test/images/{task}-1.png"


class GatedService(FakeService):
    """Holds each poll, in its thread, until the gate is opened from the event loop."""

    def __init__(self) -> None:
        super().__init__()
        self.entered: list[str] = []
        self.left: list[str] = []
        self.gate = threading.Event()

    def answer(self, request: HttpRequest) -> Answer:
        if not request.url.endswith("/progress"):
            return super().answer(request)
        task = str(json.loads(request.body)["task_id"])
        self.entered.append(task)
        assert self.gate.wait(HANGS), "the event loop has been blocked"
        self.left.append(task)
        return super().answer(request)


def client_of(service: FakeService, **settings: Any) -> Client:
    """A client by real time: between two polls the event loop sleeps, by its own clock."""
    return service.client(**{"polling": FixedInterval(0.001), **settings})


def told(**fields: object) -> HttpResponse:
    return HttpResponse(200, chunks=json.dumps(fields).encode())


def asked(service: FakeService) -> list[str]:
    return [one.at for one in service.sent]


def run(coroutine: Coroutine[Any, Any, T]) -> T:
    async def guarded() -> T:
        return await asyncio.wait_for(coroutine, HANGS)

    return asyncio.run(guarded())


async def draw(*messages: Any, **arguments: Any) -> list[ImageResponse]:
    generator = ImageLabs.create_async_generator("sdxl-turbo", messages, **arguments)
    return [response async for response in generator]


async def until(true: Callable[[], object]) -> int:
    """Tick until it is true; answers the number of ticks."""
    for ticks in count(1):
        await asyncio.sleep(0.001)
        if true():
            return ticks
    raise AssertionError("unreachable")


# What it draws ------------------------------------------------------------------------------


def test_it_yields_one_image() -> None:
    """The whole of what g4f asks of an image provider."""
    service = FakeService().progress(0.1, 0.5).done()
    responses = run(draw(prompt="a lighthouse", client=client_of(service)))
    assert responses == [ImageResponse(images=[url_of("task-1")], alt="a lighthouse")]
    assert asked(service) == [*ONE_POLL, "progress", "progress"]


def test_it_shows_what_the_reference_provider_shows() -> None:
    """g4f reads these to decide whom to ask."""
    assert ImageLabs.url == "https://editor.imagelabs.net"
    assert ImageLabs.api_endpoint == "https://editor.imagelabs.net/txt2img"
    assert ImageLabs.working
    supported = (
        ImageLabs.supports_stream,
        ImageLabs.supports_system_message,
        ImageLabs.supports_message_history,
    )
    assert supported == (False, False, False)
    assert ImageLabs.default_model == ImageLabs.default_image_model == "sdxl-turbo"
    assert ImageLabs.models == ImageLabs.image_models == ["sdxl-turbo"]
    assert ImageLabs.get_model("dall-e-3") == "sdxl-turbo"


@pytest.mark.parametrize(
    ("messages", "prompt"),
    [
        ([{"role": "user", "content": "a boat"}, {"role": "user", "content": "a pier"}], "a pier"),
        ([{"content": [{"type": "text", "text": "a red"}, {"text": "pier"}]}], "a red pier"),
        (
            [{"content": [{"type": "image_url", "image_url": {}}, {"type": "text", "text": "a"}]}],
            "a",
        ),
    ],
)
def test_the_prompt_is_the_last_messages_text(messages: list[Any], prompt: str) -> None:
    """Earlier messages are history, which the service has no notion of."""
    service = FakeService()
    [response] = run(draw(*messages, client=client_of(service)))
    assert response.alt == prompt
    service.assert_submitted_once(prompt=prompt)


def test_a_prompt_goes_before_the_messages() -> None:
    """g4f passes both when a chat asks for an image in words of its own."""
    service = FakeService()
    run(draw({"content": "please draw"}, prompt="a pier", client=client_of(service)))
    service.assert_submitted_once(prompt="a pier")


@pytest.mark.parametrize(
    "messages",
    [[], [{"role": "user"}], [{"content": None}], [{"content": " "}], [{"content": ["a", {}]}]],
)
def test_without_any_text_nothing_is_sent(messages: list[Any]) -> None:
    """The reference provider sent null and waited for ever."""
    service = FakeService()
    with pytest.raises(InvalidRequestError, match="last message") as caught:
        run(draw(*messages, client=client_of(service)))
    assert caught.value.field == "prompt"
    service.assert_nothing_submitted()


def test_fields_of_a_request_are_used_and_all_else_is_ignored() -> None:
    """g4f passes keys, conversations and formats to every provider alike."""
    service = FakeService()
    ignored = {"api_key": "secret", "stream": True, "response_format": "url", "n": 4}
    run(
        draw(
            prompt="a pier",
            negative_prompt="people",
            width=512,
            height=384,
            seed=7,
            client=client_of(service),
            **ignored,
        )
    )
    assert not ignored.keys() & service.sent[0].fields.keys()
    service.assert_submitted_once(negative_prompt="people", width=512, height=384, seed=7)


def test_an_aspect_ratio_replaces_the_usual_size() -> None:
    """The usual size is a default, no wish."""
    service = FakeService()
    client = client_of(service)
    run(draw(prompt="a pier", client=client))
    run(draw(prompt="a pier", aspect_ratio="16:9", client=client))
    usual, wide = (submit.request for submit in service.submits)
    assert (usual.width, usual.height) == (1152, 896)
    expected = ImageRequest("a pier", aspect_ratio="16:9")
    assert (wide.width, wide.height) == (expected.width, expected.height)


# Whom it asks -------------------------------------------------------------------------------


def test_without_a_client_it_makes_one_from_the_environment_and_closes_it(
    server: FaultyServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A script that only draws should not have to think of clients."""
    monkeypatch.setenv("IMAGELABS_BASE_URL", server.url)
    closed: list[str] = []
    close = Client.close

    def close_and_tell(client: Client) -> None:
        close(client)
        closed.append(client.url)

    monkeypatch.setattr(Client, "close", close_and_tell)
    monkeypatch.setattr("imagelabs_sdk.context.Adaptive", lambda **_: FixedInterval(0.01))
    [response] = run(draw(prompt="a pier"))
    assert (response.images, closed) == ([f"{server.url}/image.png"], [server.url])


def test_its_own_client_sends_a_submit_once(
    server: FaultyServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A pause in a thread cannot be cancelled: what follows it would be bought for nobody."""
    monkeypatch.setenv("IMAGELABS_BASE_URL", server.url)
    server.scripts["/txt2img"] = [reply(429, {"error": "slow down"})]
    with pytest.raises(RateLimitError):
        run(draw(prompt="a pier"))
    assert server.count("/txt2img") == 1


def test_a_client_has_its_own_proxy() -> None:
    """To leave the proxy out silently would show an address that was to be hidden."""
    service = FakeService()
    with pytest.raises(InvalidRequestError, match="proxy"):
        run(draw(prompt="a pier", proxy="http://127.0.0.1:3128", client=client_of(service)))
    assert asked(service) == []


# What goes wrong ----------------------------------------------------------------------------


def test_a_failed_job_is_said_so() -> None:
    """With the job, as everywhere."""
    service = FakeService().progress(0.5).fails("out of memory")
    with pytest.raises(JobFailedError, match="out of memory") as caught:
        run(draw(prompt="a pier", client=client_of(service)))
    assert caught.value.task_id == "task-1"


def test_one_bad_poll_does_not_lose_the_job() -> None:
    """The reference provider gave up a healthy job for one odd answer."""
    service = FakeService().answers(told(nothing="to say"), at="progress").done()
    assert len(run(draw(prompt="a pier", client=client_of(service)))) == 1


@pytest.mark.parametrize(("of_call", "of_client"), [(0.05, 300.0), (None, 0.05)])
def test_a_wait_without_end_ends_with_a_job_to_go_on_with(
    of_call: float | None, of_client: float
) -> None:
    """The reference provider asked for ever."""
    service = FakeService().takes(9)
    client = client_of(service, timeout=of_client)
    with pytest.raises(JobTimeoutError, match="still running") as caught:
        run(draw(prompt="a pier", timeout=of_call, client=client))
    job = caught.value.job
    service.clock.advance(9)
    assert isinstance(job, Job)
    assert job.result().url == url_of("task-1")


def test_a_bad_timeout_is_refused_before_anything_is_sent() -> None:
    """It is an argument like any other."""
    service = FakeService()
    with pytest.raises(InvalidRequestError, match="timeout"):
        run(draw(prompt="a pier", timeout=-1.0, client=client_of(service)))
    assert asked(service) == []


def test_time_spent_waiting_for_a_thread_counts() -> None:
    """The threads may all be busy with other jobs; who waited too long buys no image."""
    clock = count(step=10.0)
    service = FakeService()
    client = client_of(service, polling=FixedInterval(clock=lambda: next(clock)))
    with pytest.raises(APITimeoutError) as caught:
        run(draw(prompt="a pier", timeout=5.0, client=client))
    assert (caught.value.delivered, asked(service)) == ("no", [])


# What the event loop feels ------------------------------------------------------------------


def test_two_jobs_run_at_once_and_the_loop_never_stands_still() -> None:
    """Only the loop can open the gate: were it blocked, both polls would wait in vain."""
    service = GatedService()
    client = client_of(service)

    async def story() -> tuple[int, list[str], list[list[ImageResponse]]]:
        jobs = [asyncio.create_task(draw(prompt="a pier", client=client)) for _ in range(2)]
        ticks = await until(lambda: len(service.entered) == 2)
        held = list(service.left)
        service.gate.set()
        return ticks, held, await asyncio.gather(*jobs)

    ticks, held, responses = run(story())
    assert ticks >= 1
    assert held == []
    assert sorted(service.entered) == sorted(service.left) == ["task-1", "task-2"]
    assert {one.images[0] for [one] in responses} == {url_of("task-1"), url_of("task-2")}


def test_a_cancellation_does_not_wait_for_the_exchange_under_way() -> None:
    """And nothing is asked after it."""
    service = GatedService()

    async def story() -> list[str]:
        job = asyncio.create_task(draw(prompt="a pier", client=client_of(service)))
        await until(lambda: service.entered)
        job.cancel()
        with pytest.raises(asyncio.CancelledError):
            await job
        still_held = [*service.entered, *service.left]
        service.gate.set()
        return still_held

    assert run(story()) == ["task-1"]
    assert asked(service) == ONE_POLL


def test_a_cancellation_between_two_polls_names_the_job() -> None:
    """The image is paid for: somebody may want to ask for it later."""
    service = FakeService().never_finishes()

    async def story() -> asyncio.CancelledError:
        client = client_of(service, polling=Backoff(0.001, 60.0, 100.0, 0.0))
        job = asyncio.create_task(draw(prompt="a pier", client=client))
        await until(lambda: service.count("progress"))
        job.cancel()
        with pytest.raises(asyncio.CancelledError) as caught:
            await job
        return caught.value

    error = run(story())
    notes = getattr(error, "__notes__", ["task-1"])  # notes are of Python 3.11
    assert "task-1" in notes[0]
    assert asked(service) == ONE_POLL


@pytest.mark.parametrize("address", ["javascript:alert(1)", "data:text/html,x", "file:///x"])
def test_an_address_that_is_no_link_is_not_handed_on(address: str) -> None:
    """It would be put into a page, and the service is not trusted to choose what runs there."""
    service = FakeService().answers(told(status="Done", final_image_url=address), at="progress")
    with pytest.raises(JobFailedError) as caught:
        run(draw(prompt="a pier", client=client_of(service)))
    assert caught.value.task_id == "task-1"


# What it shows ------------------------------------------------------------------------------


def test_a_response_is_markdown() -> None:
    """What g4f puts into a chat."""
    response = ImageResponse(["https://a.test/1.png", "https://a.test/2.png"], "a pier")
    assert str(response) == (
        "[![a pier](https://a.test/1.png)](https://a.test/1.png)\n"
        "[![a pier](https://a.test/2.png)](https://a.test/2.png)"
    )


def test_markdown_cannot_be_broken_out_of() -> None:
    """Prompts come from users and addresses from servers."""
    response = ImageResponse(["https://a.test/%20(1) .png?a=1&b=2"], "a]( \n[b] `<c>`")
    address = "https://a.test/%20%281%29%20.png?a=1&b=2"
    assert str(response) == f"[![a\\]( \\[b\\] \\`\\<c\\>\\`]({address})]({address})"


def test_a_response_keeps_prompt_and_keys_out_of_its_repr() -> None:
    """Reprs end in logs."""
    response = ImageResponse(["https://a.test/1.png?key=secret"], "a pier")
    assert repr(response) == "ImageResponse(images=['https://a.test/1.png'], alt=<6 characters>)"
