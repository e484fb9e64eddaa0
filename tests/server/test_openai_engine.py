"""The engine for servers that speak the OpenAI images API, against servers with their oddities."""

import base64
import contextlib
import io
import pickle
import threading
from collections.abc import Callable, Iterator
from typing import Any

import attrs
import openai
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from imagelabs_sdk import APIResponseError, InvalidRequestError
from imagelabs_sdk.server.engines.base import EngineConfig, Recovery, RenderedImage, RenderError
from imagelabs_sdk.server.engines.openai import OpenAIConfig
from imagelabs_sdk.server.engines.openai.dialects import DIALECTS
from imagelabs_sdk.server.engines.openai.engine import OpenAIEngine
from imagelabs_sdk.server.engines.tuning import Limits
from imagelabs_sdk.testing import FakeClock
from tests.server.fake_openai import FakeOpenAI, running
from tests.server.monitor import Recorder, job

SELF_HOSTED = ("localai", "sdcpp", "sglang", "vllm-omni", "xinference")
WITH_EDITS = ("openai", "sdcpp", "sglang", "vllm-omni")


def png(size: tuple[int, int] = (8, 8), kind: str = "PNG") -> bytes:
    file = io.BytesIO()
    Image.new("RGB", size, "teal").save(file, kind)
    return file.getvalue()


def data_uri(data: bytes | None = None) -> str:
    return "data:image/png;base64," + base64.b64encode(data or png()).decode()


def holds(data: bytes) -> dict[str, Any]:
    return {"data": [{"b64_json": base64.b64encode(data).decode()}]}


@attrs.define
class Setup:
    """A fake server and an engine for it; no wait is real."""

    fake: FakeOpenAI
    url: str
    time: FakeClock = attrs.Factory(FakeClock)
    monitor: Recorder = attrs.Factory(Recorder)
    engines: list[OpenAIEngine] = attrs.Factory(list)

    def engine(self, **more: Any) -> OpenAIEngine:
        dialect = self.fake.kind
        settings = {"backend": self.url, "model": "m", "dialect": dialect, **more}
        engine = OpenAIConfig(**settings).load(0)
        assert isinstance(engine, OpenAIEngine)
        self.engines.append(engine)
        return attrs.evolve(engine, sleep=self.time.sleep, clock=self.time.now)

    def close(self) -> None:
        for engine in self.engines:
            engine.close()

    def render(self, prompt: str = "a lighthouse", **more: Any) -> RenderedImage | RenderError:
        (outcome,) = self.engine().render([job(prompt, **more)], self.monitor)
        return outcome

    def image(self, prompt: str = "a lighthouse", **more: Any) -> RenderedImage:
        outcome = self.render(prompt, **more)
        assert isinstance(outcome, RenderedImage), outcome
        return outcome

    def failure(self, prompt: str = "a lighthouse", **more: Any) -> str:
        outcome = self.render(prompt, **more)
        assert isinstance(outcome, RenderError), outcome
        return outcome.message


Start = Callable[[str], Setup]


@pytest.fixture
def start() -> Iterator[Start]:
    """Start a fake server of a kind."""
    with contextlib.ExitStack() as stack:

        def begin(kind: str) -> Setup:
            fake = FakeOpenAI(kind)
            setup = Setup(fake, stack.enter_context(running(fake)))
            stack.callback(setup.close)
            return setup

        yield begin


@pytest.fixture
def generic(start: Start) -> Setup:
    return start("generic")


# What a job becomes ---------------------------------------------------------------------


def test_the_config_is_an_engine_config_that_pickles_and_hides_its_key() -> None:
    config: EngineConfig = OpenAIConfig(backend="http://127.0.0.1:1/v1/", api_key="sk-secret-key")
    assert pickle.loads(pickle.dumps(config)) == config
    assert config.recovery is Recovery.NEITHER
    assert (config.max_batch, config.batch_wait, config.in_process) == (1, 0.0, True)
    assert config.batch_key(job().request) == config.batch_key(job("else").request)
    assert "secret" not in repr(config)
    assert isinstance(config.load(0), OpenAIEngine)


def test_a_prompt_becomes_an_image_file_that_says_how_it_was_made(generic: Setup) -> None:
    image = generic.image(width=96, height=72)
    assert isinstance(image.image, bytes)
    assert Image.open(io.BytesIO(image.image)).size == (96, 72)
    assert image.info["engine"] == "openai"
    assert (image.info["model"], image.info["seed"]) == ("m", 7)
    assert (image.info["width"], image.info["height"]) == (96, 72)
    assert image.info["seconds"] >= 0
    assert generic.monitor.fractions == {"task-1": [0.0]}


@pytest.mark.parametrize("kind", SELF_HOSTED)
def test_each_dialect_carries_prompt_negative_prompt_seed_and_steps(
    start: Start, kind: str
) -> None:
    setup = start(kind)
    image = setup.image("a lighthouse", negative_prompt="people", seed=3, extra_body={"steps": 9})
    (drawn,) = setup.fake.drawn
    known = {name: drawn[name] for name in ("prompt", "negative", "seed", "steps")}
    assert known == {"prompt": "a lighthouse", "negative": "people", "seed": 3, "steps": 9}
    assert image.info["steps"] == 9
    assert image.info["ignored"] == []
    assert isinstance(image.image, bytes)
    assert image.image.startswith(b"\x89PNG")


@pytest.mark.parametrize("kind", sorted(set(SELF_HOSTED) - {"localai"}))
def test_guidance_reaches_the_servers_that_take_it(start: Start, kind: str) -> None:
    setup = start(kind)
    image = setup.image(extra_body={"cfg_scale": 2.5})
    assert setup.fake.drawn[0]["guidance"] == 2.5
    assert image.info["guidance"] == 2.5


def test_what_a_server_does_not_take_is_named_as_ignored(start: Start) -> None:
    setup = start("openai")
    image = setup.image(negative_prompt="people", extra_body={"steps": 9, "pose": "x"})
    assert image.info["ignored"] == ["negative_prompt", "pose", "steps"]
    assert image.info["seed"] is None
    assert image.info["usage"] == {"input_tokens": 9, "output_tokens": 272}


@pytest.mark.parametrize(
    ("asked", "rendered"),
    [((1152, 896), (1536, 1024)), ((512, 512), (1024, 1024)), ((600, 900), (1024, 1536))],
)
def test_the_openai_api_gets_the_nearest_of_its_sizes_and_the_true_one_is_told(
    start: Start, asked: tuple[int, int], rendered: tuple[int, int]
) -> None:
    info = start("openai").image(width=asked[0], height=asked[1]).info
    assert (info["width"], info["height"]) == rendered
    assert (info["requested_width"], info["requested_height"]) == asked


def test_the_old_models_of_the_openai_api_are_asked_for_base64(start: Start) -> None:
    setup = start("generic")
    engine = setup.engine(dialect="openai", model="dall-e-3")
    engine.render([job()], setup.monitor)
    assert setup.fake.asked[0][1]["response_format"] == "b64_json"


def test_a_server_that_rounds_sizes_is_believed_by_what_it_sent(start: Start) -> None:
    info = start("sdcpp").image(width=100, height=60).info
    assert (info["width"], info["height"]) == (128, 64)


def test_a_large_seed_fits_the_servers_that_keep_31_bits(start: Start) -> None:
    setup = start("localai")
    setup.image(seed=2**31 + 5)
    assert setup.fake.drawn[0]["seed"] == 5


def test_a_server_without_model_names_is_asked_without_one(generic: Setup) -> None:
    engine = generic.engine(model="")
    engine.render([job()], generic.monitor)
    assert "model" not in generic.fake.asked[0][1]


def test_a_long_wait_gives_signs_of_life(generic: Setup, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("imagelabs_sdk.server.engines.openai.engine._SIGN_OF_LIFE", 0.001)
    seen = threading.Event()
    generic.monitor.on_progress = lambda _: (
        seen.set() if len(generic.monitor.fractions["task-1"]) > 1 else None
    )

    def slow() -> tuple[int, dict[str, Any], dict[str, str]]:
        assert seen.wait(10)
        return 200, holds(png()), {}

    generic.fake.script = [slow]
    generic.image()


# Files ----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_the_formats_that_clients_know_are_kept_byte_by_byte(generic: Setup, kind: str) -> None:
    data = png(kind=kind)
    generic.fake.script = [lambda: (200, holds(data), {})]
    assert generic.image().image == data


def test_what_a_server_wrote_into_the_file_is_removed(generic: Setup) -> None:
    notes = PngInfo()
    notes.add_text("parameters", "a secret lighthouse, steps: 20")
    file = io.BytesIO()
    Image.new("RGB", (8, 8)).save(file, "PNG", pnginfo=notes)
    generic.fake.script = [lambda: (200, holds(file.getvalue()), {})]
    image = generic.image().image
    assert isinstance(image, bytes)
    assert b"secret" not in image


@pytest.mark.parametrize("mode", ["RGB", "RGBA"])
def test_any_other_format_becomes_a_png(generic: Setup, mode: str) -> None:
    file = io.BytesIO()
    Image.new(mode, (8, 8), "teal").save(file, "TIFF")
    generic.fake.script = [lambda: (200, holds(file.getvalue()), {})]
    image = generic.image().image
    assert isinstance(image, bytes)
    assert image.startswith(b"\x89PNG")
    assert Image.open(io.BytesIO(image)).mode == mode


@pytest.mark.parametrize(
    "answer",
    [
        {"data": []},
        {"data": None},
        {"data": [None]},
        {"data": [{"b64_json": ""}]},
        {"data": [{"b64_json": "@@@"}]},
        holds(b"<html>"),
        holds(png((64, 64))[:-20]),
        [],
        None,
    ],
)
def test_an_answer_without_a_whole_image_fails_the_job(generic: Setup, answer: Any) -> None:
    generic.fake.script = [lambda: (200, answer, {})]
    assert "image" in generic.failure()
    assert len(generic.fake.asked) == 1


def test_an_image_of_too_many_pixels_is_not_decoded(
    generic: Setup, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("imagelabs_sdk.server.engines.files.MAX_PIXELS", 63)
    generic.fake.script = [lambda: (200, holds(png()), {})]
    assert "8 x 8 pixels are too many" in generic.failure()


def test_an_address_in_an_answer_is_not_followed(generic: Setup) -> None:
    answer = {"data": [{"url": "http://127.0.0.1:1/image.png"}]}
    generic.fake.script = [lambda: (200, answer, {})]
    message = generic.failure()
    assert "not followed" in message
    assert "b64_json" in message
    assert "127.0.0.1:1/" not in message


# What is sent again, and what is not -----------------------------------------------------


def test_a_broken_connection_is_not_asked_again_and_says_that_the_image_may_exist(
    generic: Setup,
) -> None:
    generic.fake.script = [lambda: None]
    assert "may have been made" in generic.failure()
    assert len(generic.fake.asked) == 1
    assert generic.time.slept == []


@pytest.mark.parametrize("status", [500, 502, 503, 504])
def test_a_failing_server_is_not_asked_again(generic: Setup, status: int) -> None:
    generic.fake.script = [lambda: (status, {"error": "generate_image returned no results"}, {})]
    message = generic.failure()
    assert "may have been made" in message
    assert "generate_image returned no results" in message
    assert len(generic.fake.asked) == 1


@pytest.mark.parametrize(
    ("status", "headers", "waits"),
    [(429, {}, 2.0), (429, {"retry-after": "5"}, 5.0), (503, {"retry-after": "0"}, 2.0)],
)
def test_a_refusal_before_any_work_is_asked_again_after_the_wait(
    generic: Setup, status: int, headers: dict[str, str], waits: float
) -> None:
    generic.fake.script = [lambda: (status, {"error": "busy"}, headers)]
    generic.fake.script.append(lambda: (200, holds(png()), {}))
    generic.image()
    assert generic.time.slept == [waits]


def test_an_exhausted_quota_is_not_waited_for(generic: Setup) -> None:
    error = {"error": {"message": "You exceeded your quota", "code": "insufficient_quota"}}
    generic.fake.script = [lambda: (429, error, {})]
    assert "You exceeded your quota" in generic.failure()
    assert len(generic.fake.asked) == 1


def test_a_server_that_is_down_is_waited_for(generic: Setup) -> None:
    engine = generic.engine(backend="http://127.0.0.1:9/v1", timeout=100.0)
    (outcome,) = engine.render([job()], generic.monitor)
    assert isinstance(outcome, RenderError)
    assert "could not take the job in time" in outcome.message
    assert sum(generic.time.slept) == pytest.approx(100.0)
    assert generic.time.slept[:4] == [2.0, 4.0, 8.0, 16.0]


def test_a_job_cancelled_while_it_waits_is_not_sent(generic: Setup) -> None:
    generic.monitor.cancelled.add("task-1")
    assert generic.failure() == "cancelled"
    assert generic.fake.asked == []


def test_a_refused_request_fails_with_the_servers_words_but_not_the_prompt(start: Start) -> None:
    setup = start("openai")
    setup.fake.script = [
        lambda: (400, {"error": {"message": "Invalid size for 'a secret lighthouse'"}}, {})
    ]
    message = setup.failure("a secret lighthouse")
    assert "status 400" in message
    assert "Invalid size" in message
    assert "lighthouse" not in message


@pytest.mark.parametrize("body", [{"detail": "no such model"}, {"message": "no such model"}])
def test_the_reason_is_found_in_each_form_of_error(generic: Setup, body: dict[str, str]) -> None:
    generic.fake.script = [lambda: (404, body, {})]
    assert "no such model" in generic.failure()


def test_an_answer_without_words_is_named_by_its_status(generic: Setup) -> None:
    generic.fake.script = [lambda: (403, {}, {}), lambda: (403, {"error": {}}, {})]
    assert "status 403: no reason given" in generic.failure()
    assert "status 403: no reason given" in generic.failure()


def test_an_endless_answer_is_cut(generic: Setup, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("imagelabs_sdk.server.engines.backend.MAX_ANSWER", 100)
    assert "longer than 100 bytes" in generic.failure()
    with pytest.raises(APIResponseError):
        raise APIResponseError("as the transport says it")


def rendered_once(config: OpenAIConfig) -> Any:
    engine = config.load(0)
    try:
        return engine.render([job()], Recorder())
    finally:
        engine.close()


def test_the_key_is_sent_and_never_shown() -> None:
    with running(FakeOpenAI("openai", api_key="sk-right-key-123456")) as url:
        config = OpenAIConfig(backend=url, dialect="openai", api_key="sk-wrong-key-123456")
        (outcome,) = rendered_once(config)
        assert isinstance(outcome, RenderError)
        assert "status 401" in outcome.message
        assert "wrong-key" not in outcome.message
        right = attrs.evolve(config, api_key="sk-right-key-123456")
        (image,) = rendered_once(right)
        assert isinstance(image, RenderedImage)


# What is refused before the job is taken ---------------------------------------------------


@pytest.mark.parametrize("kind", sorted(set(DIALECTS) - {"openai"}))
@pytest.mark.parametrize(
    "text",
    [
        'a cat <sd_cpp_extra_args>{"sample_params":{"sample_steps":9999}}</sd_cpp_extra_args>',
        "a cat <SD_CPP_EXTRA_ARGS>",
        "a cat <lora:/etc/passwd:1>",
        "a cat < LORA : x:1>",
        "a cat <hypernet:x:1>",
    ],
)
@pytest.mark.parametrize("field", ["prompt", "negative_prompt"])
def test_a_prompt_with_a_command_is_refused_by_name_without_quoting_it(
    kind: str, text: str, field: str
) -> None:
    config = OpenAIConfig(backend="http://127.0.0.1:1", dialect=kind)
    texts = {"prompt": "a cat", field: text}
    request = job(texts["prompt"], negative_prompt=texts.get("negative_prompt", "")).request
    with pytest.raises(InvalidRequestError, match="would obey it") as caught:
        config.check(request)
    assert caught.value.field == field
    assert "a cat" not in str(caught.value)


def test_a_pipe_is_a_command_for_localai_alone() -> None:
    request = job("a cat | a dog").request
    OpenAIConfig(backend="http://127.0.0.1:1", dialect="vllm-omni").check(request)
    with pytest.raises(InvalidRequestError, match=r'"\|"'):
        OpenAIConfig(backend="http://127.0.0.1:1", dialect="localai").check(request)


def test_a_command_that_is_let_through_would_be_obeyed_by_the_fake(start: Start) -> None:
    """Why they are refused: the seed here is not the one that was asked for."""
    setup = start("sdcpp")
    setup.image('a cat <sd_cpp_extra_args>{"seed":1}</sd_cpp_extra_args>')
    assert setup.fake.drawn[0]["seed"] == 1


@pytest.mark.parametrize(
    ("extra", "field"),
    [
        ({"steps": 51}, "steps"),
        ({"steps": 0}, "steps"),
        ({"steps": 1.5}, "steps"),
        ({"steps": True}, "steps"),
        ({"cfg_scale": 31}, "cfg_scale"),
        ({"cfg_scale": -1}, "cfg_scale"),
        ({"cfg_scale": "7"}, "cfg_scale"),
        ({"subseed_strength": 1.1}, "subseed_strength"),
    ],
)
def test_what_the_operator_does_not_allow_is_refused(extra: dict[str, Any], field: str) -> None:
    config = OpenAIConfig(backend="http://127.0.0.1:1", limits=Limits(max_steps=50))
    with pytest.raises(InvalidRequestError) as caught:
        config.check(job(extra_body=extra).request)
    assert caught.value.field == field


def test_tiling_is_refused() -> None:
    with pytest.raises(InvalidRequestError, match="tiling"):
        OpenAIConfig(backend="http://127.0.0.1:1").check(job(tiling=True).request)


@pytest.mark.parametrize(
    "wrong",
    [
        {"backend": "ftp://x"},
        {"dialect": "klingon"},
        {"timeout": 0.0},
        {"workers": 0},
        {"api_key": "a b"},
        {"api_key": "schlüssel"},
    ],
)
def test_a_setting_that_cannot_be_used_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequestError):
        OpenAIConfig(**{"backend": "http://127.0.0.1:1", **wrong})


# Image to image ----------------------------------------------------------------------------


@pytest.mark.parametrize("kind", WITH_EDITS)
def test_a_reference_image_goes_to_images_edits_where_the_server_has_it(
    start: Start, kind: str
) -> None:
    setup = start(kind)
    OpenAIConfig(backend=setup.url, dialect=kind).check(job(reference_image=data_uri()).request)
    image = setup.image(reference_image=data_uri(), reference_strength=60)
    (path, fields, _) = setup.fake.asked[0]
    assert path == "/v1/images/edits"
    assert fields["image"] == png()
    assert "reference_image" not in image.info["ignored"]
    if kind == "sdcpp":
        assert setup.fake.drawn[0]["strength"] == 0.6


@pytest.mark.parametrize("kind", sorted(DIALECTS.keys() - WITH_EDITS))
def test_a_server_without_edits_refuses_a_reference_image_by_name(kind: str) -> None:
    config = OpenAIConfig(backend="http://127.0.0.1:1", dialect=kind)
    with pytest.raises(InvalidRequestError, match=f"dialect {kind} has no images/edits"):
        config.check(job(reference_image=data_uri()).request)


def test_a_reference_image_that_is_not_base64_fails_the_job_unsent(start: Start) -> None:
    setup = start("vllm-omni")
    assert "not base64" in setup.failure(reference_image="data:image/png;base64,@@@")
    assert setup.fake.asked == []


# The judge ---------------------------------------------------------------------------------


def test_the_openai_client_gets_along_with_the_fake_servers(start: Start) -> None:
    """A third party's word that what the tests above talk to speaks the API."""
    setup = start("openai")
    with openai.OpenAI(base_url=setup.url, api_key="k", max_retries=0) as client:
        answer = client.images.generate(model="m", prompt="a lighthouse", size="1024x1024")
        assert answer.data
        assert answer.data[0].b64_json
        assert Image.open(io.BytesIO(base64.b64decode(answer.data[0].b64_json))).size == (
            1024,
            1024,
        )
        edited = client.images.edit(model="m", prompt="x", image=("a.png", png()), size="auto")
        assert edited.data
        with pytest.raises(openai.BadRequestError, match="Unknown parameter: 'seed'"):
            client.images.generate(model="m", prompt="x", size="auto", extra_body={"seed": 1})
        setup.fake.script = [lambda: (429, {"error": {"message": "slow", "code": "x"}}, {})]
        with pytest.raises(openai.RateLimitError, match="slow"):
            client.images.generate(model="m", prompt="x", size="auto")
        setup.fake.script = [lambda: None]
        with pytest.raises(openai.APIConnectionError):
            client.images.generate(model="m", prompt="x", size="auto")
