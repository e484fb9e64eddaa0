"""What can be said of a model without torch: its index, its files, the operator's settings."""

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import attrs
import pytest

from imagelabs_sdk import InvalidRequestError
from imagelabs_sdk.server.engines.diffusers import DiffusersConfig
from imagelabs_sdk.server.engines.diffusers.models import (
    Defaults,
    ModelCard,
    needed_files,
    read_card,
)
from imagelabs_sdk.server.engines.tuning import Limits
from tests.server.monitor import job

CARD = ModelCard(folder="x", pipeline="P", has_convolutions=True, defaults=Defaults())


def test_a_folder_says_what_it_holds(tmp_path: Path) -> None:
    index = {"_class_name": "StableDiffusionXLPipeline", "unet": ["diffusers", "U"]}
    (tmp_path / "model_index.json").write_text(json.dumps(index))
    card = read_card(str(tmp_path))
    assert card == ModelCard(
        folder=str(tmp_path),
        pipeline="StableDiffusionXLPipeline",
        has_convolutions=True,
        defaults=Defaults(steps=30, guidance=5.0),
    )
    assert card.image_to_image


@pytest.mark.parametrize("text", ["{", "[]", "{}"])
def test_a_folder_that_holds_no_model_is_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(InvalidRequestError, match="holds no model_index"):
        read_card(str(tmp_path))
    (tmp_path / "model_index.json").write_text(text)
    with pytest.raises(InvalidRequestError, match="holds no model_index"):
        read_card(str(tmp_path))


def test_only_what_a_pipeline_loads_is_fetched() -> None:
    names = [
        ".gitattributes",
        "README.md",
        "model_index.json",
        "sd_xl_turbo_1.0.safetensors",
        "scheduler/scheduler_config.json",
        "text_encoder/model.fp16.safetensors",
        "text_encoder/model.safetensors",
        "text_encoder/pytorch_model.bin",
        "text_encoder/modeling.py",
        "tokenizer/merges.txt",
        "tokenizer/vocab.json",
        "transformer/diffusion-00001-of-2.safetensors",
        "transformer/diffusion.safetensors.index.json",
        "unet/diffusion.fp16.safetensors",
        "unet/diffusion.fp16.safetensors.index.json",
        "unet/diffusion.safetensors",
        "unet/diffusion.safetensors.index.json",
        "vae/diffusion.bin",
        "vae/diffusion.non_ema.safetensors",
        "vae/diffusion.safetensors",
    ]
    assert needed_files(names) == [
        "model_index.json",
        "scheduler/scheduler_config.json",
        "text_encoder/model.fp16.safetensors",
        "tokenizer/merges.txt",
        "tokenizer/vocab.json",
        "transformer/diffusion-00001-of-2.safetensors",
        "transformer/diffusion.safetensors.index.json",
        "unet/diffusion.fp16.safetensors",
        "unet/diffusion.fp16.safetensors.index.json",
        "vae/diffusion.safetensors",
    ]


@pytest.mark.parametrize(
    "wrong",
    [
        {"device": "tpu"},
        {"dtype": "int8"},
        {"max_batch": 0},
        {"workers": 0},
        {"batch_wait": -1.0},
        {"steps": 101},
        {"guidance": 31.0},
        {"steps": 11, "limits": Limits(max_steps=10)},
    ],
)
def test_a_setting_that_cannot_be_used_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequestError):
        DiffusersConfig(model="x", card=CARD, **wrong)


def test_no_wait_for_a_batch_is_allowed() -> None:
    assert DiffusersConfig(model="x", card=CARD, batch_wait=0.0).batch_wait == 0.0


def test_the_front_loads_neither_torch_nor_diffusers() -> None:
    code = (
        "import sys, imagelabs_sdk.server.engines.diffusers as d; "
        "print([m for m in ('torch', 'diffusers', 'huggingface_hub') if m in sys.modules])"
    )
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
    assert output.stdout.strip() == b"[]"


def test_a_request_comes_before_the_operator_and_the_operator_before_the_model() -> None:
    card = attrs.evolve(CARD, defaults=Defaults(steps=30, guidance=5.0))
    config = DiffusersConfig(model="x", card=card, steps=3)
    assert config.tuning(job().request).steps == 3
    assert config.tuning(job().request).guidance == 5.0
    asked = config.tuning(job(extra_body={"steps": 5, "cfg_scale": 1}).request)
    assert (asked.steps, asked.guidance) == (5, 1.0)


def test_a_worker_loads_what_the_operator_said(monkeypatch: pytest.MonkeyPatch) -> None:
    """What loads it needs torch, which is not here: `nox -s engines` has it."""
    engine = SimpleNamespace(load_engine=lambda card, **settings: (card, settings))
    monkeypatch.setitem(sys.modules, f"{DiffusersConfig.__module__[:-6]}engine", engine)
    config = DiffusersConfig(model="x", card=CARD, device="cuda:1", dtype="float16")
    loaded: Any = config.load(3)
    card, settings = loaded
    assert card is CARD
    tuning = settings.pop("tuning")
    assert settings == {"model": "x", "device": "cuda:1", "dtype": "float16", "worker": 3}
    assert tuning(job().request) == config.tuning(job().request)


def test_what_a_model_cannot_do_is_refused_before_the_job_is_taken() -> None:
    config = DiffusersConfig(model="x", card=attrs.evolve(CARD, has_convolutions=False))
    config.check(job().request)
    wrongs: tuple[dict[str, Any], ...] = (
        {"tiling": True},
        {"extra_body": {"subseed_strength": 0.5}},
        {"reference_image": "data:image/png;base64,AAAA"},
    )
    for wrong in wrongs:
        with pytest.raises(InvalidRequestError):
            config.check(job(**wrong).request)


def test_requests_of_one_shape_share_a_forward_pass() -> None:
    config = DiffusersConfig(model="x", card=CARD)
    key = config.batch_key(job("a").request)
    assert key == config.batch_key(job("b", seed=3).request)
    assert key != config.batch_key(job("a", width=72).request)
    assert key != config.batch_key(job("a", extra_body={"steps": 3}).request)
