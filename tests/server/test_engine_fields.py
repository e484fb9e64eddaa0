"""Which fields of a request each engine takes, ignores or refuses: the table of the docs."""

import json
import re
from pathlib import Path
from typing import Any

import attrs
import pytest

from imagelabs_sdk import InvalidRequestError
from imagelabs_sdk.server.engines.base import EngineConfig
from imagelabs_sdk.server.engines.comfyui import ComfyUIConfig, Workflow
from imagelabs_sdk.server.engines.diffusers import DiffusersConfig
from imagelabs_sdk.server.engines.landscape import LandscapeEngine
from imagelabs_sdk.server.engines.landscape.scene import TAKES
from imagelabs_sdk.server.engines.openai import OpenAIConfig
from imagelabs_sdk.server.engines.openai.dialects import DIALECTS
from imagelabs_sdk.server.engines.tuning import ignored_fields
from tests.server.fake_comfyui import stock_workflow
from tests.server.monitor import job
from tests.server.test_diffusers_config import CARD
from tests.server.test_openai_engine import data_uri

ASKED: dict[str, dict[str, Any]] = {
    "negative_prompt": {"negative_prompt": "people"},
    "subseed_strength": {"extra_body": {"subseed_strength": 0.5}},
    "tiling": {"tiling": True},
    "reference_image": {"reference_image": data_uri()},
    "reference_strength": {"reference_strength": 60},
    "steps": {"extra_body": {"steps": 3}},
    "cfg_scale": {"extra_body": {"cfg_scale": 3.0}},
    "attention": {"attention": 1},
    "reference_image_type": {"reference_image_type": "x"},
    "others": {"extra_body": {"pose": "x"}},
}
ALL_MAPPED = ["image=10.image", "strength=3.denoise", "subseed=3.extra", "subseed_strength=3.extra"]


def workflow(*mapping: str) -> Workflow:
    graph = stock_workflow()
    graph["3"]["inputs"]["extra"] = 0
    graph["10"] = {"class_type": "LoadImage", "inputs": {"image": "example.png"}}
    return Workflow.parse(json.dumps(graph), mapping)


def without_places() -> Workflow:
    full = workflow()
    return attrs.evolve(full, places={"prompt": full.places["prompt"]})


def comfyui(workflow: Workflow) -> tuple[EngineConfig, frozenset[str]]:
    return ComfyUIConfig(backends=("http://127.0.0.1:1",), workflow=workflow), workflow.takes


def openai(dialect: str) -> tuple[EngineConfig, frozenset[str]]:
    config = OpenAIConfig(backend="http://127.0.0.1:1", dialect=dialect)
    return config, config.kind.takes


ENGINES: dict[str, list[tuple[EngineConfig, frozenset[str]]]] = {
    "landscape": [(LandscapeEngine(), TAKES)],
    "comfyui": [comfyui(workflow(*ALL_MAPPED)), comfyui(without_places())],
    "openai": [openai(dialect) for dialect in DIALECTS],
}
"""Each engine at its most and at its least, with what it takes."""


def table() -> dict[str, dict[str, str]]:
    """The cells of the table, by field and engine."""
    page = (Path(__file__).parents[2] / "docs/engines/index.md").read_text(encoding="utf-8")
    section = page.partition("## What becomes of each field")[2]
    head, _, *rows = (
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in section.splitlines()
        if line.startswith("|")
    )
    engines = [engine.strip("`") for engine in head[1:]]
    return {
        field: dict(zip(engines, row[1:], strict=True))
        for row in rows
        for field in re.findall(r"\w+", row[0])
    }


def fate(config: EngineConfig, takes: frozenset[str], field: str) -> str:
    request = job(**ASKED[field]).request
    try:
        config.check(request)
    except InvalidRequestError as exc:
        return "refused" if exc.field == field else f"refused for its {exc.field}"
    return "ignored" if ignored_fields(request, takes) else "taken"


@pytest.mark.parametrize("field", ASKED)
@pytest.mark.parametrize("engine", ENGINES)
def test_the_table_says_what_becomes_of_a_field(engine: str, field: str) -> None:
    """Never both ignored and refused: one rule for each field of an engine."""
    cell = table()[field][engine].replace("by dialect", "taken")
    fates = {fate(config, takes, field) for config, takes in ENGINES[engine]}
    expected = set(re.findall("taken|ignored|refused", cell))
    assert fates == expected


@pytest.mark.parametrize("field", ["subseed_strength", "tiling", "reference_image"])
def test_a_model_that_can_do_it_takes_what_another_refuses(field: str) -> None:
    """Whether it can stands in its index."""
    request = job(**ASKED[field]).request
    unet = attrs.evolve(CARD, pipeline="StableDiffusionPipeline")
    other = attrs.evolve(CARD, has_convolutions=False)
    DiffusersConfig(model="x", card=unet).check(request)
    with pytest.raises(InvalidRequestError) as caught:
        DiffusersConfig(model="x", card=other).check(request)
    assert caught.value.field == field
    assert "refused" in table()[field]["diffusers"]


def test_a_variation_of_a_reference_image_is_refused() -> None:
    """The noise is drawn by the pipeline there, and would be the same for each subseed."""
    unet = attrs.evolve(CARD, pipeline="StableDiffusionPipeline")
    both = {**ASKED["reference_image"], **ASKED["subseed_strength"]}
    with pytest.raises(InvalidRequestError, match="no reference_image"):
        DiffusersConfig(model="x", card=unet).check(job(**both).request)
