"""A service that gives away whatever it was told, and what records it."""

import json
from contextlib import suppress
from pathlib import Path
from typing import Any

from imagelabs_sdk import (
    APIConnectionError,
    CassetteTransport,
    Deadline,
    FixedInterval,
    HandlerTransport,
    HttpRequest,
    HttpResponse,
    ImageLabs,
)
from imagelabs_sdk.provenance import SourceType, with_provenance
from tests.faulty import PNG

PROMPT = "my grandmother's secret garden"
SIGNED = "https://cdn.test/x.png?sig=signature-hush"


def ok(**fields: object) -> HttpResponse:
    return HttpResponse(200, {"content-type": "application/json"}, json.dumps(fields).encode())


def answer(request: HttpRequest) -> HttpResponse:
    """A service that gives away in its answers whatever it was told."""
    if request.method == "GET":
        told = with_provenance(PNG, SourceType.TRAINED, {}, prompt=PROMPT)
        return HttpResponse(200, {"content-type": "image/png"}, told)
    if request.url.endswith("/txt2img"):
        return HttpResponse(
            200,
            {"set-cookie": "sid=session-hush; Path=/", "x-internal": "internal-hush"},
            json.dumps(
                {
                    "task_id": "task-1",
                    "note": f"{PROMPT}: cookie-hush session-hush key-hush; grandmother",
                    "access_token": "token-hush",
                    "via": "http://user:proxy-hush@proxy.test",
                }
            ).encode(),
        )
    return ok(status="Done", progress=1, final_image_url=SIGNED, seen=[PROMPT, 1, None])


def client_of(transport: CassetteTransport, **more: Any) -> ImageLabs:
    return ImageLabs("https://api.test", transport=transport, polling=FixedInterval(0.01), **more)


def record(path: Path, **more: Any) -> str:
    """Record one image and return the file's text."""
    with CassetteTransport(path, record=HandlerTransport(answer), **more) as transport:
        client = client_of(transport, cookies={"c": "cookie-hush"}, api_key="key-hush")
        client.generate(PROMPT, seed=1, subseed=2, reference_image="data:image/png;base64,QUJDRA==")
        client.generate(PROMPT, seed=3, subseed=4).read()
    return path.read_text(encoding="utf-8")


def send(transport: CassetteTransport, url: str = "https://h.test/x") -> bytes:
    request = HttpRequest(method="GET", url=url)
    with transport.send(request, deadline=Deadline.after(5)) as response:
        return response.read(1000)


def play(path: Path, *answers: HttpResponse | Exception) -> CassetteTransport:
    """Record one GET for each of the answers, and return what replays them."""
    script = list(answers)

    def peer(_: HttpRequest) -> HttpResponse:
        said = script.pop(0)
        if isinstance(said, Exception):
            raise said
        return said

    with CassetteTransport(path, record=HandlerTransport(peer)) as transport:
        while script:
            with suppress(APIConnectionError):
                send(transport)
    return CassetteTransport(path)
