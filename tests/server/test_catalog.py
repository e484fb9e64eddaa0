"""From the operator's options to an engine's configuration."""

import json
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from imagelabs_sdk import InvalidRequestError
from imagelabs_sdk.server.engines import catalog
from imagelabs_sdk.server.engines.catalog import ENGINES, EngineOptions, build_engine
from imagelabs_sdk.server.engines.comfyui import ComfyUIConfig
from imagelabs_sdk.server.engines.diffusers import DiffusersConfig
from imagelabs_sdk.server.engines.landscape import LandscapeEngine
from imagelabs_sdk.server.engines.openai import OpenAIConfig
from tests.server.fake_comfyui import RunningComfyUI, stock_workflow


@pytest.fixture
def comfy() -> Iterator[RunningComfyUI]:
    server = RunningComfyUI()
    yield server
    server.stop()


@pytest.fixture
def workflow(tmp_path: Path) -> Path:
    path = tmp_path / "workflow_api.json"
    path.write_text(json.dumps(stock_workflow()))
    return path


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(catalog, "find_spec", lambda name: name)  # as if torch were here
    index = {"_class_name": "StableDiffusionXLPipeline", "unet": ["diffusers", "U"]}
    (tmp_path / "model_index.json").write_text(json.dumps(index))
    return str(tmp_path)


def test_the_landscape_engine_is_made_without_a_word() -> None:
    assert build_engine("landscape", EngineOptions()) == LandscapeEngine()
    options = EngineOptions(duration=0.0, workers=3, max_batch=4, batch_wait_ms=20.0)
    made = build_engine("landscape", options)
    assert made == LandscapeEngine(0.0, 3, max_batch=4, batch_wait=0.02)


def test_a_model_is_described_by_its_folder(model: str) -> None:
    options = EngineOptions(
        model=model,
        device="cpu",
        steps=2,
        guidance=1.0,
        max_batch=3,
        batch_wait_ms=0.0,
        max_steps=9,
    )
    made = build_engine("diffusers", options)
    assert isinstance(made, DiffusersConfig)
    assert (made.model, made.device, made.max_batch, made.batch_wait) == (model, "cpu", 3, 0.0)
    assert (made.steps, made.guidance, made.limits.max_steps) == (2, 1.0, 9)


def test_a_missing_torch_is_said_before_anything_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(catalog, "find_spec", lambda _: None)
    with pytest.raises(ImportError, match="torch"):
        build_engine("diffusers", EngineOptions(model="x"))


def test_an_openai_server_gets_its_key(monkeypatch: pytest.MonkeyPatch) -> None:
    options = EngineOptions(
        backends=("http://127.0.0.1:8080/v1",),
        model="m",
        dialect="sdcpp",
        api_key="sk-1",
        workers=2,
        render_timeout=60.0,
        max_guidance=9.0,
    )
    made = build_engine("openai", options)
    assert isinstance(made, OpenAIConfig)
    assert (made.dialect, made.api_key, made.workers, made.timeout) == ("sdcpp", "sk-1", 2, 60.0)
    assert made.limits.max_guidance == 9.0
    assert "sk-1" not in repr(options) + repr(made)


def test_a_workflow_is_compared_with_every_server_at_start(
    comfy: RunningComfyUI, workflow: Path
) -> None:
    options = EngineOptions(
        backends=(comfy.url,), workflow=workflow, mapping=("output=9",), render_timeout=9.0
    )
    made = build_engine("comfyui", options)
    assert isinstance(made, ComfyUIConfig)
    assert (made.backends, made.timeout) == ((comfy.url,), 9.0)
    assert comfy.fake.asked == ["GET /object_info"]


def test_a_workflow_that_a_server_cannot_run_is_refused_at_start(
    comfy: RunningComfyUI, workflow: Path
) -> None:
    workflow.write_text(workflow.read_text().replace('"VAEDecode"', '"MyDecode"'))
    with pytest.raises(InvalidRequestError, match="the server has no MyDecode"):
        build_engine("comfyui", EngineOptions(backends=(comfy.url,), workflow=workflow))


def test_a_server_that_is_down_is_waited_for_later(
    workflow: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    made = build_engine("comfyui", EngineOptions(backends=(url,), workflow=workflow))
    assert made.name == "comfyui"
    assert f"{url} does not answer yet" in caplog.text


@pytest.mark.parametrize(
    ("engine", "given", "words"),
    [
        ("klingon", {}, "must be one of comfyui, diffusers, landscape, openai"),
        ("landscape", {"model": "x"}, "--model is no option of the engine landscape"),
        ("landscape", {"backends": ("x",)}, "--backend is no option"),
        ("openai", {"mapping": ("x",)}, "--map is no option"),
        ("diffusers", {"duration": 1.0}, "--duration is no option"),
        ("diffusers", {}, "--model is needed"),
        ("openai", {}, "--backend is needed once"),
        ("openai", {"backends": ("http://a.test", "http://b.test")}, "--backend is needed once"),
        ("comfyui", {}, "--workflow is needed"),
        ("comfyui", {"workflow": Path("/no/such/file")}, "cannot be read"),
    ],
)
def test_options_that_do_not_fit_are_refused_by_name(
    engine: str, given: dict[str, Any], words: str
) -> None:
    with pytest.raises(InvalidRequestError, match=words):
        build_engine(engine, EngineOptions(**given))


def test_every_option_belongs_to_an_engine() -> None:
    taken = frozenset().union(*(names for _, names in ENGINES.values()))
    known = set(EngineOptions.__annotations__) - {"api_key"}
    assert taken == known
