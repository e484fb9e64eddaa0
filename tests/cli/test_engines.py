"""`imagelabs serve --engine ...` and `imagelabs pull`."""

import builtins
import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from imagelabs_sdk.cli import engines
from imagelabs_sdk.cli.commands import cli
from imagelabs_sdk.server import service
from imagelabs_sdk.server.engines.comfyui import ComfyUIConfig
from imagelabs_sdk.server.engines.diffusers import models
from imagelabs_sdk.server.engines.openai import OpenAIConfig
from tests.server.fake_comfyui import RunningComfyUI, stock_workflow


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What would be served: engine and options."""
    calls: list[Any] = []
    monkeypatch.setattr(service, "serve", lambda *what, **_: calls.extend(what))
    return calls


def run(*arguments: object) -> Any:
    return CliRunner().invoke(cli, [str(each) for each in arguments])


def test_an_engine_and_its_options_reach_the_server(
    served: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("IMAGELABS_BACKEND_API_KEY", "sk-1")
    result = run(
        *("serve", "--port", 0, "--engine", "openai", "--backend", "http://127.0.0.1:1/v1"),
        *("--model", "m", "--dialect", "vllm-omni", "--max-steps", 9, "--embed-prompts"),
    )
    assert result.exit_code == 0, result.output
    engine, options = served
    assert isinstance(engine, OpenAIConfig)
    assert (engine.model, engine.dialect, engine.api_key) == ("m", "vllm-omni", "sk-1")
    assert engine.limits.max_steps == 9
    assert options.embed_prompts


def test_a_workflow_and_its_places_reach_the_engine(served: list[Any], tmp_path: Path) -> None:
    path = tmp_path / "workflow_api.json"
    path.write_text(json.dumps(stock_workflow()))
    comfy = RunningComfyUI()
    try:
        result = run(
            *("serve", "--port", 0, "--engine", "comfyui", "--backend", comfy.url),
            *("--workflow", path, "--map", "prompt=7.text"),
        )
    finally:
        comfy.stop()
    assert result.exit_code == 0, result.output
    assert isinstance(served[0], ComfyUIConfig)
    assert served[0].workflow.places["prompt"] == (("7", "text"),)
    assert not served[1].embed_prompts


def test_an_option_that_does_not_fit_is_named(served: list[Any]) -> None:
    result = run("serve", "--engine", "landscape", "--model", "x")
    assert result.exit_code != 0
    assert "--model is no option of the engine landscape" in result.output
    assert served == []


def test_a_missing_extra_is_named(served: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*_: Any) -> None:
        raise ImportError("No module named 'torch'")

    monkeypatch.setattr(engines, "build_engine", missing)
    result = run("serve", "--engine", "diffusers", "--model", "x")
    assert result.exit_code != 0
    assert 'pip install "imagelabs_sdk[diffusers]"' in result.output
    assert "imagelabs_sdk[server]" in run("serve", "--engine", "openai").output


def test_pull_says_each_file_and_prints_the_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    def fetch(model: str, on_file: Any) -> Path:
        assert model == "owner/name"
        on_file("unet/a.safetensors", 1, 2)
        return Path("/cache/owner/name")

    monkeypatch.setattr(models, "pull", fetch)
    result = run("pull", "owner/name")
    assert result.exit_code == 0, result.output
    assert "1/2 unet/a.safetensors" in result.output
    assert result.output.endswith("/cache/owner/name\n")


def test_pull_without_the_extra_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without_hub(name: str, *more: Any) -> Any:
        if name.startswith("huggingface_hub"):
            raise ImportError("No module named 'huggingface_hub'")
        return real(name, *more)

    monkeypatch.setattr(builtins, "__import__", without_hub)
    result = run("pull", "owner/name")
    assert result.exit_code != 0
    assert 'pip install "imagelabs_sdk[diffusers]"' in result.output
