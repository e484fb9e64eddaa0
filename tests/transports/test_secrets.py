"""What a recording may not hold, seen in the file."""

import json
from pathlib import Path

import pytest

from imagelabs_sdk import (
    APIStatusError,
    CassetteError,
    CassetteTransport,
    HandlerTransport,
    HttpRequest,
    HttpResponse,
)
from tests.faulty import PNG
from tests.transports.recordings import PROMPT, client_of, ok, record, send


def test_a_cassette_holds_no_secret(path: Path) -> None:
    """Neither what was sent, nor what an answer quotes of it, nor signatures of URLs."""
    text = record(path)
    assert "hush" not in text
    assert "grandmother" not in text
    assert "QUJDRA" not in text
    assert "x-internal" not in text
    assert '"prompt": "prompt-1"' in text
    assert "data:redacted," in text
    replay = CassetteTransport(path)
    client = client_of(replay)
    client.generate(
        "other words", seed=1, subseed=2, reference_image="data:image/png;base64,QUJDRA=="
    )
    assert client.generate("other words", seed=3, subseed=4).read() == PNG
    replay.assert_all_used()


def test_a_prompt_in_an_answer_that_is_cut_is_replaced(path: Path) -> None:
    """It stands there with the escapes of JSON, and cannot be parsed."""
    prompt = "Löwin äöü"
    cut = HttpResponse(500, {}, json.dumps({"prompt": prompt})[:-1].encode())
    transport = CassetteTransport(path, record=HandlerTransport(lambda _: cut))
    with pytest.raises(APIStatusError):
        client_of(transport).submit(prompt)
    (exchange,) = json.loads(path.read_text(encoding="utf-8"))["exchanges"]
    assert exchange["response"]["text"] == '{"prompt": "prompt-1"'


def test_prompts_are_kept_when_asked_for(path: Path) -> None:
    """Then the image has its texts, too; secrets stay out."""
    text = record(path, keep_prompts=True)
    assert f'"prompt": "{PROMPT}"' in text
    assert "hush" not in text
    with pytest.raises(CassetteError, match="prompt is 'other words', recorded was"):
        client_of(CassetteTransport(path)).generate("other words", seed=1, subseed=2)


def test_equal_prompts_stay_equal(path: Path) -> None:
    """Another text where the recording repeated one is another request."""
    record(path)
    client = client_of(CassetteTransport(path, ignore=["reference_image"]))
    client.generate("other words", seed=1, subseed=2)
    with pytest.raises(CassetteError, match="prompt is 'prompt-2', recorded was 'prompt-1'"):
        client.generate("and others", seed=3, subseed=4)


@pytest.mark.parametrize("image", [PNG[:18], b"GIF89a" + PROMPT.encode()])
def test_an_image_that_may_hold_a_prompt_keeps_its_head(path: Path, image: bytes) -> None:
    """One that is cut, or of a format whose texts cannot be removed."""

    def peer(request: HttpRequest) -> HttpResponse:
        return HttpResponse(200, {}, image) if request.method == "GET" else ok(task_id="t")

    with CassetteTransport(path, record=HandlerTransport(peer)) as transport:
        client_of(transport).submit(PROMPT)
        send(transport)
    assert send(CassetteTransport(path)) == image[:16]


@pytest.mark.parametrize(
    "name", ["api_key", "apiKey", "accessToken", "client_secret", "Password", "authorization"]
)
def test_a_field_with_the_name_of_a_secret_is_redacted(path: Path, name: str) -> None:
    """Nobody has sent its value, so nothing else tells what it is."""
    transport = CassetteTransport(
        path, record=HandlerTransport(lambda _: ok(task_id="t", user={name: "unheard-of"}))
    )
    client_of(transport).submit(PROMPT)
    assert f'"{name}": "redacted"' in path.read_text(encoding="utf-8")
