"""The engine for ComfyUI servers, against one with the oddities of the real thing."""

import contextlib
import gc
import io
import json
import pickle
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

import attrs
import comfy_sdk
import pytest
import websocket
from PIL import Image

from imagelabs_sdk import APIConnectionError, Deadline, HttpRequest, InvalidRequestError
from imagelabs_sdk.server.engines.backend import Answer, Backend
from imagelabs_sdk.server.engines.base import (
    BackendLostError,
    EngineConfig,
    Recovery,
    RenderedImage,
    RenderError,
    RenderJob,
)
from imagelabs_sdk.server.engines.comfyui import ComfyUIConfig, Workflow
from imagelabs_sdk.server.engines.comfyui.engine import ComfyUIEngine
from imagelabs_sdk.server.engines.comfyui.events import Event, EventStream
from imagelabs_sdk.testing import FakeClock
from tests.server.fake_comfyui import OBJECT_INFO, RunningComfyUI, stock_workflow
from tests.server.monitor import Recorder, job
from tests.server.test_openai_engine import data_uri, png
from tests.server.test_pool import eventually

STOCK = Workflow.parse(json.dumps(stock_workflow()))


@attrs.define
class Setup:
    """A fake server, an engine for it, and what the engine reported."""

    server: RunningComfyUI
    monitor: Recorder = attrs.Factory(Recorder)
    workflow: Workflow = STOCK
    engines: list[ComfyUIEngine] = attrs.Factory(list)

    @property
    def fake(self) -> Any:
        return self.server.fake

    def engine(self, **more: Any) -> ComfyUIEngine:
        settings: dict[str, Any] = {"backends": (self.server.url,), "workflow": self.workflow}
        engine = ComfyUIConfig(**{**settings, **more}).load(0)
        assert isinstance(engine, ComfyUIEngine)
        self.engines.append(engine)
        return engine

    def outcome(self, job: RenderJob, **more: Any) -> RenderedImage | RenderError:
        (outcome,) = self.engine(**more).render([job], self.monitor)
        return outcome

    def image(self, job: RenderJob, **more: Any) -> RenderedImage:
        outcome = self.outcome(job, **more)
        assert isinstance(outcome, RenderedImage), outcome
        return outcome

    def failure(self, job: RenderJob, **more: Any) -> str:
        outcome = self.outcome(job, **more)
        assert isinstance(outcome, RenderError), outcome
        return outcome.message

    def posts(self) -> int:
        return int(self.fake.asked.count("POST /prompt"))


@pytest.fixture
def comfy() -> Iterator[Setup]:
    setup = Setup(RunningComfyUI())
    yield setup
    for engine in setup.engines:
        engine.close()
    setup.server.stop()
    gc.collect()


@contextlib.contextmanager
def in_background(work: Callable[[], Any]) -> Iterator[list[Any]]:
    """Run `work` in a thread while the block lasts; its result is in the list afterwards."""
    results: list[Any] = []
    thread = threading.Thread(target=lambda: results.append(work()))
    thread.start()
    try:
        yield results
    finally:
        thread.join(60)
        assert not thread.is_alive()


# A job on its way -------------------------------------------------------------------------


def test_the_config_is_an_engine_config_that_pickles() -> None:
    config: EngineConfig = ComfyUIConfig(
        backends=("http://127.0.0.1:1/", "http://127.0.0.1:2"), workflow=STOCK
    )
    assert pickle.loads(pickle.dumps(config)) == config
    assert config.recovery is Recovery.RESUMABLE
    assert (config.workers, config.max_batch, config.batch_wait) == (2, 1, 0.0)
    assert config.in_process
    assert config.batch_key(job().request) == config.batch_key(job("else").request)


def test_each_worker_has_a_server_of_its_own() -> None:
    config = ComfyUIConfig(backends=("http://127.0.0.1:1", "http://127.0.0.1:2"), workflow=STOCK)
    engines = [config.load(worker) for worker in range(2)]
    assert all(isinstance(engine, ComfyUIEngine) for engine in engines)
    urls = [engine.backend.url for engine in engines if isinstance(engine, ComfyUIEngine)]
    assert urls == ["http://127.0.0.1:1", "http://127.0.0.1:2"]


def test_a_request_fills_the_workflow_and_comes_back_as_an_image(comfy: Setup) -> None:
    image = comfy.image(
        job(
            "a lighthouse",
            negative_prompt="people",
            width=100,
            height=60,
            extra_body={"steps": 3, "cfg_scale": 2.5, "pose": "x"},
        )
    )
    graph = comfy.fake.graphs[0]
    assert graph["6"]["inputs"]["text"] == "a lighthouse"
    assert graph["7"]["inputs"]["text"] == "people"
    assert graph["3"]["inputs"]["seed"] == 7
    assert (graph["3"]["inputs"]["steps"], graph["3"]["inputs"]["cfg"]) == (3, 2.5)
    assert (graph["5"]["inputs"]["width"], graph["5"]["inputs"]["height"]) == (100, 60)
    info = dict(image.info)
    assert info.pop("seconds") >= 0
    assert info == {
        "engine": "comfyui",
        "model": "sdxl.safetensors",
        "steps": 3,
        "guidance": 2.5,
        "seed": 7,
        "subseed": None,
        "width": 96,  # floored to a multiple of 8
        "height": 56,
        "requested_width": 100,
        "requested_height": 60,
        "ignored": ["pose"],
    }


def test_what_a_request_leaves_open_stays_as_in_the_workflow_and_is_told(comfy: Setup) -> None:
    info = comfy.image(job()).info
    assert (info["steps"], info["guidance"]) == (4, 8.0)


def test_the_workflow_does_not_travel_with_the_image(comfy: Setup) -> None:
    data = comfy.image(job("a secret lighthouse")).image
    assert isinstance(data, bytes)
    assert b"secret" not in data
    assert b"KSampler" not in data
    with Image.open(io.BytesIO(data)) as image:
        assert image.size == (64, 64)


def test_the_handle_is_the_id_and_is_asked_for_before_it_is_sent(comfy: Setup) -> None:
    comfy.image(job(number=5))
    assert comfy.fake.executed == [job(number=5).handle]
    asked = [path for path in comfy.fake.asked if "jobs" in path or "POST" in path]
    assert asked[:2] == [f"GET /api/jobs/{job(number=5).handle}", "POST /prompt"]


def test_a_job_that_is_done_there_is_fetched_and_not_sent_again(comfy: Setup) -> None:
    comfy.image(job())
    comfy.image(job(attempt=2))
    assert comfy.posts() == 1


def test_a_job_that_runs_there_is_followed_by_the_next_worker(comfy: Setup) -> None:
    comfy.fake.open_gate.clear()
    first = comfy.engine()
    with in_background(lambda: first.render([job()], comfy.monitor)) as results:
        assert comfy.fake.at_gate.wait(30)
        with in_background(lambda: comfy.image(job(attempt=2))):
            comfy.fake.open_gate.set()
    assert comfy.posts() == 1
    assert comfy.fake.executed == [job().handle]
    assert isinstance(results[0][0], RenderedImage)


def test_an_equal_request_is_answered_from_the_cache_with_the_same_file(comfy: Setup) -> None:
    assert comfy.image(job(number=1)).image == comfy.image(job(number=2)).image
    assert len(comfy.fake.files) == 1


# Progress ---------------------------------------------------------------------------------


def test_progress_never_falls_and_previews_come_while_somebody_watches(comfy: Setup) -> None:
    comfy.monitor.watched.add("task-1")
    comfy.image(job())
    fractions = comfy.monitor.fractions["task-1"]
    assert fractions == sorted(fractions)
    assert {0.25, 0.5, 0.75, 1.0} <= set(fractions)
    previews = comfy.monitor.previews["task-1"]
    assert previews
    assert all(preview.startswith(b"\xff\xd8") for preview in previews)


def test_no_preview_is_reported_while_nobody_watches(comfy: Setup) -> None:
    comfy.image(job())
    assert comfy.monitor.previews == {}


def test_without_a_websocket_the_job_is_polled(comfy: Setup) -> None:
    comfy.fake.has_websocket = False
    comfy.image(job())
    assert set(comfy.monitor.fractions["task-1"]) == {0.0}


def test_messages_of_other_jobs_and_of_other_shapes_say_nothing(comfy: Setup) -> None:
    sent = [
        "no json",
        json.dumps([]),
        json.dumps({"type": "progress", "data": {"prompt_id": "other", "value": 1, "max": 2}}),
        json.dumps({"type": "progress", "data": {"prompt_id": "mine"}}),
        json.dumps({"type": "executing", "data": {"prompt_id": "mine"}}),
        b"\0",
        b"\0\0\0\3\0\0\0\0text",
        b"\0\0\0\4\0\0\0\x15" + b'{"prompt_id":"other"}' + b"JPEG",
        json.dumps({"type": "progress", "data": {"prompt_id": "mine", "value": 1, "max": 0}}),
        json.dumps({"type": "progress_state", "data": {"prompt_id": "mine", "nodes": {}}}),
        b"\0\0\0\1\0\0\0\1JPEG",
    ]

    class Scripted:
        def send(self, _: str) -> None:
            pass

        def settimeout(self, _: float) -> None:
            pass

        def close(self, **_: object) -> None:
            pass

        def shutdown(self) -> None:
            pass

        def recv(self) -> Any:
            if not sent:
                raise websocket.WebSocketConnectionClosedException
            return sent.pop(0)

    stream = EventStream("http://x", "mine", connect=lambda *_, **__: Scripted())
    events = [stream.next(0.1) for _ in range(len(sent))]
    assert events[:8] == [None] * 8
    assert events[8:] == [Event(fraction=0.0), Event(), Event(preview=b"JPEG")]
    assert stream.is_open
    assert stream.next(0.1) is None
    assert not stream.is_open
    stream.close()


# Failures ---------------------------------------------------------------------------------


def test_the_reason_of_a_refused_workflow_is_passed_on(comfy: Setup) -> None:
    message = comfy.failure(job(width=8))
    assert "node 5 (EmptyLatentImage): Value 8 smaller than min, width" in message


@pytest.mark.parametrize(("error", "words"), [("no prompt", "no prompt"), ({}, "no reason given")])
def test_a_refusal_of_another_shape_is_told_too(
    comfy: Setup, monkeypatch: pytest.MonkeyPatch, error: object, words: str
) -> None:
    answer = Answer(400, json.dumps({"error": error}).encode())
    monkeypatch.setattr(Backend, "post", lambda *_: answer)
    assert comfy.failure(job()) == f"the back end refused the workflow: {words}"


def test_a_job_that_waits_in_an_older_servers_queue_is_not_sent_again(comfy: Setup) -> None:
    comfy.fake.has_jobs_api = False
    comfy.fake.open_gate.clear()
    first, second = comfy.engine(), comfy.engine()
    with in_background(lambda: first.render([job(number=1)], Recorder())):
        assert comfy.fake.at_gate.wait(30)
        with in_background(lambda: second.render([job(number=2)], Recorder())):
            eventually(lambda: len(comfy.fake.pending) == 1)
            asked = comfy.fake.asked.count("GET /queue")
            eventually(lambda: comfy.fake.asked.count("GET /queue") > asked)
            comfy.fake.open_gate.set()
    assert comfy.fake.executed == [job(number=1).handle, job(number=2).handle]


def test_a_failed_sampler_is_told_in_its_own_words_without_the_prompt(comfy: Setup) -> None:
    comfy.fake.fails_with = "CUDA out of memory"
    message = comfy.failure(job("a secret"))
    assert message == "the back end failed: KSampler: CUDA out of memory"


def test_a_workflow_that_the_server_cannot_run_is_named_before_it_is_sent(comfy: Setup) -> None:
    graph = stock_workflow()
    graph["8"]["class_type"] = "MyVAEDecode"
    comfy.workflow = Workflow.parse(json.dumps(graph))
    assert "node 8: the server has no MyVAEDecode" in comfy.failure(job())
    assert comfy.posts() == 0


def test_a_workflow_that_saves_no_image_is_an_error(comfy: Setup) -> None:
    comfy.workflow = Workflow.parse(json.dumps(stock_workflow()), ["output=9"])
    comfy.image(job(number=1))
    comfy.fake.history[job(number=1).handle]["outputs"] = {"9": {"text": ["x"]}}
    assert "without an image at node 9" in comfy.failure(job(number=1))


def test_a_file_that_is_gone_or_damaged_is_an_error(comfy: Setup) -> None:
    comfy.image(job())
    (name,) = comfy.fake.files
    comfy.fake.files[name] = b"<html>"
    assert "cannot be used" in comfy.failure(job())
    del comfy.fake.files[name]
    assert "404 when asked for the image" in comfy.failure(job())


def test_an_answer_without_end_is_cut(comfy: Setup, monkeypatch: pytest.MonkeyPatch) -> None:
    comfy.image(job())
    monkeypatch.setattr("imagelabs_sdk.server.engines.backend.MAX_ANSWER", 10)
    assert "longer than 10 bytes" in comfy.failure(job())


def test_a_job_that_takes_too_long_is_stopped_there(comfy: Setup) -> None:
    comfy.fake.open_gate.clear()
    assert "within 0.3 seconds" in comfy.failure(job(), timeout=0.3)
    eventually(lambda: job().handle in comfy.fake.history)
    assert comfy.fake.history[job().handle]["status"]["status_str"] == "error"


def test_a_server_that_fails_to_say_how_a_job_stands_is_an_error(comfy: Setup) -> None:
    class BrokenHistory(dict[str, Any]):
        def __contains__(self, key: object) -> bool:
            raise RuntimeError

    comfy.fake.history = BrokenHistory()
    assert "answered 500 when asked for the job" in comfy.failure(job())


# Cancel -----------------------------------------------------------------------------------


def cancelled_midway(comfy: Setup) -> str:
    comfy.fake.open_gate.clear()
    with in_background(lambda: comfy.failure(job())) as results:
        assert comfy.fake.at_gate.wait(30)
        comfy.monitor.cancelled.add("task-1")
        comfy.fake.at_gate.clear()
    eventually(lambda: job().handle in comfy.fake.history)
    return str(results[0])


def test_a_cancelled_job_is_stopped_there(comfy: Setup) -> None:
    assert cancelled_midway(comfy) == "cancelled"
    assert f"POST /api/jobs/{job().handle}/cancel" in comfy.fake.asked
    assert comfy.fake.history[job().handle]["status"]["messages"][-1][0] == "execution_interrupted"


def test_a_job_that_is_cancelled_while_messages_come_is_stopped_at_the_next(comfy: Setup) -> None:
    comfy.fake.open_gate.clear()
    comfy.monitor.on_progress = comfy.monitor.cancelled.add
    assert comfy.failure(job()) == "cancelled"


def test_a_cancelled_job_is_stopped_on_an_older_server_without_hitting_another(
    comfy: Setup,
) -> None:
    comfy.fake.has_jobs_api = False
    assert cancelled_midway(comfy) == "cancelled"
    assert "POST /interrupt" in comfy.fake.asked


def test_a_waiting_job_is_taken_out_of_an_older_servers_queue(comfy: Setup) -> None:
    comfy.fake.has_jobs_api = False
    comfy.fake.open_gate.clear()
    first = comfy.engine()
    with in_background(lambda: first.render([job(number=1)], Recorder())):
        assert comfy.fake.at_gate.wait(30)
        with in_background(lambda: comfy.failure(job(number=2))) as results:
            eventually(lambda: len(comfy.fake.pending) == 1)
            comfy.monitor.cancelled.add("task-2")
        assert results == ["cancelled"]
        assert comfy.fake.pending == []
        assert "POST /interrupt" not in comfy.fake.asked
        comfy.fake.open_gate.set()
    assert comfy.fake.executed == [job(number=1).handle]


def test_a_job_that_somebody_else_stopped_is_told_so(comfy: Setup) -> None:
    comfy.fake.open_gate.clear()
    with in_background(lambda: comfy.failure(job())) as results:
        assert comfy.fake.at_gate.wait(30)
        comfy.fake.interrupted = True
    assert results == ["the back end failed: it was interrupted there"]


# Older servers ------------------------------------------------------------------------------


def test_a_server_without_the_jobs_api_is_asked_by_history_and_queue(comfy: Setup) -> None:
    comfy.fake.has_jobs_api = False
    comfy.image(job())
    comfy.image(job(attempt=2))
    assert comfy.posts() == 1
    comfy.fake.fails_with = "no memory"
    assert "KSampler: no memory" in comfy.failure(job("else", number=2))


def test_a_server_that_takes_no_id_is_refused_and_its_queue_is_left_clean(comfy: Setup) -> None:
    comfy.fake.takes_prompt_id = comfy.fake.has_jobs_api = False
    comfy.fake.open_gate.clear()
    assert "too old" in comfy.failure(job())
    comfy.fake.open_gate.set()
    eventually(lambda: not comfy.fake.running)
    assert job().handle not in comfy.fake.history


# kill -9 ------------------------------------------------------------------------------------


def test_a_server_that_lost_its_queue_gets_the_job_again_under_the_same_id(comfy: Setup) -> None:
    comfy.fake.open_gate.clear()
    with in_background(lambda: comfy.image(job())) as results:
        assert comfy.fake.at_gate.wait(30)
        port = comfy.server.port
        comfy.server.stop()
        comfy.server = RunningComfyUI(port=port)
    assert comfy.fake.executed == [job().handle]
    assert isinstance(results[0], RenderedImage)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def test_kill_9_of_the_server_loses_no_job() -> None:
    port = free_port()

    def start() -> subprocess.Popen[bytes]:
        return subprocess.Popen([sys.executable, "-m", "tests.server.fake_comfyui", str(port)])

    process = start()
    config = ComfyUIConfig(backends=(f"http://127.0.0.1:{port}",), workflow=STOCK)
    monitor = Recorder()
    begun = threading.Event()
    monitor.on_progress = lambda _: begun.set()
    slow = job(extra_body={"steps": 100})
    try:
        engine = config.load(0)
        with in_background(lambda: engine.render([slow], monitor)) as results:
            assert begun.wait(30)
            process.send_signal(signal.SIGKILL)
            process.wait()
            process = start()
    finally:
        process.kill()
        process.wait()
    engine.close()
    assert isinstance(results[0][0], RenderedImage)


def test_a_server_that_stays_away_gives_its_job_back_once(comfy: Setup) -> None:
    time = FakeClock()
    url = f"http://127.0.0.1:{free_port()}"
    engine = attrs.evolve(
        comfy.engine(backends=(url,), give_up_after=5.0), sleep=time.sleep, clock=time.now
    )
    with pytest.raises(BackendLostError, match=url):
        engine.render([job()], comfy.monitor)
    assert time.slept == [1.0] * 5


@attrs.define
class LosingTransport:
    """Loses the first request to a path."""

    inner: Any
    path: str
    lost: int = 0

    def send(self, request: HttpRequest, *, deadline: Deadline) -> Any:
        if self.path in request.url and not self.lost:
            self.lost += 1
            raise APIConnectionError("reset")
        return self.inner.send(request, deadline=deadline)

    def close(self) -> None:
        self.inner.close()


@pytest.mark.parametrize("path", ["/api/jobs/", "/object_info", "/prompt", "/view"])
def test_a_request_that_is_lost_on_the_way_is_asked_again(comfy: Setup, path: str) -> None:
    time = FakeClock()
    engine = comfy.engine()
    transport = LosingTransport(engine.backend.transport, path)
    backend = attrs.evolve(engine.backend, transport=transport)
    engine = attrs.evolve(engine, backend=backend, sleep=time.sleep)
    (outcome,) = engine.render([job()], comfy.monitor)
    assert isinstance(outcome, RenderedImage)
    assert transport.lost == 1
    assert time.slept == [1.0]


def test_a_server_that_keeps_forgetting_a_job_is_given_up(comfy: Setup) -> None:
    class Forgetful(list[Any]):
        def append(self, item: Any) -> None:
            pass

    comfy.fake.pending = Forgetful()
    assert "keeps forgetting" in comfy.failure(job())
    assert comfy.posts() == 3


# Image to image ------------------------------------------------------------------------------


def image_workflow() -> Workflow:
    graph = stock_workflow()
    graph["10"] = {"class_type": "LoadImage", "inputs": {"image": "example.png"}}
    graph["5"] = {"class_type": "VAEEncode", "inputs": {"pixels": ["10", 0], "vae": ["4", 2]}}
    return Workflow.parse(json.dumps(graph), ["image=10.image", "strength=3.denoise"])


def test_a_reference_image_is_uploaded_first(comfy: Setup) -> None:
    comfy.workflow = image_workflow()
    image = comfy.image(job(reference_image=data_uri(), reference_strength=60))
    assert comfy.fake.files["input", "imagelabs", f"{job().handle}.png"] == png()
    graph = comfy.fake.graphs[0]
    assert graph["10"]["inputs"]["image"] == f"imagelabs/{job().handle}.png"
    assert graph["3"]["inputs"]["denoise"] == 0.6
    assert image.info["ignored"] == []


def test_a_workflow_without_a_place_for_it_refuses_a_reference_image_by_name() -> None:
    config = ComfyUIConfig(backends=("http://127.0.0.1:1",), workflow=STOCK)
    with pytest.raises(InvalidRequestError, match="no place mapped for it"):
        config.check(job(reference_image=data_uri()).request)
    attrs.evolve(config, workflow=image_workflow()).check(job(reference_image=data_uri()).request)


def test_a_reference_image_that_cannot_be_taken_fails_the_job(comfy: Setup) -> None:
    comfy.workflow = image_workflow()
    assert "not base64" in comfy.failure(job(reference_image="data:image/png;base64,@@@"))
    comfy.fake.files = None  # the server fails to store it
    assert "did not take the reference image: 500" in comfy.failure(job(reference_image=data_uri()))


# What is refused before a job is taken, and at start ------------------------------------------


def test_tiling_and_bad_numbers_are_refused() -> None:
    config = ComfyUIConfig(backends=("http://127.0.0.1:1",), workflow=STOCK)
    with pytest.raises(InvalidRequestError, match="tiling"):
        config.check(job(tiling=True).request)
    with pytest.raises(InvalidRequestError, match="steps"):
        config.check(job(extra_body={"steps": 1000}).request)


@pytest.mark.parametrize(
    ("wrong", "words"),
    [({"backends": ()}, "at least one"), ({"backends": ("x",)}, "base_url"),
     ({"timeout": 0}, "timeout"), ({"give_up_after": -1}, "give_up_after")],
)  # fmt: skip
def test_a_setting_that_cannot_be_used_is_refused(wrong: dict[str, Any], words: str) -> None:
    settings: dict[str, Any] = {"backends": ("http://127.0.0.1:1",), "workflow": STOCK, **wrong}
    with pytest.raises(InvalidRequestError, match=words):
        ComfyUIConfig(**settings)


# Workflows --------------------------------------------------------------------------------


def test_the_places_of_the_stock_graph_are_guessed() -> None:
    assert STOCK.output == "9"
    assert dict(STOCK.places) == {
        "prompt": (("6", "text"),),
        "negative_prompt": (("7", "text"),),
        "seed": (("3", "seed"),),
        "steps": (("3", "steps"),),
        "guidance": (("3", "cfg"),),
        "width": (("5", "width"),),
        "height": (("5", "height"),),
    }
    assert STOCK.mismatches(OBJECT_INFO) == []


def test_a_text_is_found_behind_other_nodes_and_with_two_inputs() -> None:
    graph = stock_workflow()
    graph["6"] = {"class_type": "CLIPTextEncodeSDXL", "inputs": {"text_g": "", "text_l": ""}}
    graph["11"] = {"class_type": "ConditioningZeroOut", "inputs": {"conditioning": ["6", 0]}}
    graph["3"]["inputs"]["negative"] = ["11", 0]
    places = Workflow.parse(json.dumps(graph)).places
    assert places["prompt"] == (("6", "text_g"), ("6", "text_l"))
    assert "negative_prompt" not in places, "both conditionings come from one text"


@pytest.mark.parametrize("link", ["no link", [], ["99", 0], ["8", 0]])
def test_what_leads_nowhere_is_not_guessed(link: Any) -> None:
    graph = stock_workflow()
    graph["3"]["inputs"]["latent_image"] = link
    assert "width" not in Workflow.parse(json.dumps(graph)).places


def test_a_prompt_that_no_node_upstream_has_must_be_named() -> None:
    graph = stock_workflow()
    graph["3"]["inputs"]["positive"] = ["4", 0]
    with pytest.raises(InvalidRequestError, match=r"prompt=6\.text"):
        Workflow.parse(json.dumps(graph))


def test_what_has_no_place_is_not_told(comfy: Setup) -> None:
    places = {"prompt": comfy.workflow.places["prompt"]}
    comfy.workflow = attrs.evolve(comfy.workflow, places=places)
    info = comfy.image(job()).info
    assert [info[name] for name in ("steps", "guidance", "seed")] == [None] * 3


def test_a_circle_of_links_ends() -> None:
    graph = stock_workflow()
    graph["12"] = {"class_type": "A", "inputs": {"samples": ["13", 0]}}
    graph["13"] = {"class_type": "B", "inputs": {"samples": ["12", 0]}}
    graph["3"]["inputs"]["latent_image"] = ["12", 0]
    assert "width" not in Workflow.parse(json.dumps(graph)).places


def test_a_named_place_comes_before_a_guessed_one_and_may_be_several() -> None:
    workflow = Workflow.parse(
        json.dumps(stock_workflow()), ["prompt=6.text", "prompt=7.text", "output=9"]
    )
    assert workflow.places["prompt"] == (("6", "text"), ("7", "text"))
    graph = workflow.filled({"prompt": "x", "subseed": 1})
    assert graph["6"]["inputs"]["text"] == graph["7"]["inputs"]["text"] == "x"
    assert workflow.graph["6"]["inputs"]["text"] == "a fox"


@pytest.mark.parametrize(
    ("mapping", "words"),
    [
        ("prompt", "NAME=NODE.INPUT"),
        ("colour=6.text", "names: guidance"),
        ("prompt=6", "NAME=NODE.INPUT"),
        ("output=9.images", "output=NODE"),
        ("prompt=66.text", "no such node"),
        ("prompt=6.texts", "no such input"),
    ],
)
def test_a_mapping_that_cannot_be_is_refused(mapping: str, words: str) -> None:
    with pytest.raises(InvalidRequestError, match=words):
        Workflow.parse(json.dumps(stock_workflow()), [mapping])


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "must be JSON"),
        ('{"nodes": [], "links": []}', "Export"),
        ("{}", "must map node ids"),
        ('{"1": {"inputs": {}}}', "must map node ids"),
        ('{"1": {"class_type": "A", "inputs": {}}}', "name the prompt's place"),
    ],
)
def test_a_file_that_is_no_workflow_is_refused(text: str, words: str) -> None:
    with pytest.raises(InvalidRequestError, match=words):
        Workflow.parse(text)


def test_two_samplers_or_two_saved_images_are_not_guessed_between() -> None:
    graph = stock_workflow()
    graph["10"] = graph["9"]
    with pytest.raises(InvalidRequestError, match="output=9"):
        Workflow.parse(json.dumps(graph))
    graph["13"] = graph["3"]
    with pytest.raises(InvalidRequestError, match=r"prompt=6\.text"):
        Workflow.parse(json.dumps(graph))


def test_what_a_server_could_not_run_is_listed() -> None:
    graph = stock_workflow()
    graph["6"]["inputs"]["extra"] = 1
    graph["14"] = {"class_type": "Strange", "inputs": {"x": 1}}
    mapping = ["prompt=6.extra", "subseed=14.x", "output=8"]
    assert Workflow.parse(json.dumps(graph), mapping).mismatches(OBJECT_INFO) == [
        "node 14: the server has no Strange",
        "prompt=6.extra: the node has no such input",
        "output=8: the node saves nothing",
    ]
    assert Workflow.parse(json.dumps(graph), ["output=14"]).mismatches({"Strange": {}})


def test_a_workflow_without_a_checkpoint_names_no_model(comfy: Setup) -> None:
    graph = stock_workflow()
    graph["4"]["inputs"]["ckpt_name"] = ["15", 0]
    comfy.workflow = Workflow.parse(json.dumps(graph))
    assert comfy.image(job()).info["model"] == ""


# The judge --------------------------------------------------------------------------------


def test_comfy_sdk_gets_along_with_the_fake_server_through_comfy_api_proxy(
    comfy: Setup, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A third party's word that what the tests above talk to behaves as ComfyUI does."""
    port = free_port()
    command = [sys.executable, "-m", "comfy_api_proxy.cli", "run"]
    proxy = subprocess.Popen([*command, "--port", str(port), "--comfyui", comfy.server.url])
    try:
        eventually(lambda: proxy.poll() is not None or is_listening(port), within=120.0)
        monkeypatch.setenv("COMFY_BASE_URL", f"http://127.0.0.1:{port}")
        with comfy_sdk.Comfy() as client:
            comfy.fake.lingers = True  # the proxy takes a job for lost that ends as it asks
            done = client.run(client.workflows.from_json(stock_workflow()))
            (output,) = done.get_outputs("9")
            assert output.name.endswith(".png")
    finally:
        proxy.terminate()
        proxy.wait(30)


def is_listening(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
        return True
    return False
