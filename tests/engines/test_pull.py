"""Fetching a model into the cache, and finding it there: the hub is a stand-in."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

huggingface_hub = pytest.importorskip(
    "huggingface_hub",
    reason="huggingface_hub is not installed; `nox -s engines` runs these in a place of their own",
)

from imagelabs_sdk import InvalidRequestError  # noqa: E402 - after the skip
from imagelabs_sdk.server.engines.diffusers.models import pull, read_card  # noqa: E402

FILES = ["model_index.json", "unet/a.safetensors", "unet/a.bin", "unet/config.json"]


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> SimpleNamespace:
    state = SimpleNamespace(files=FILES, fetched=[], folder=tmp_path)

    def model_info(_: Any, model: str) -> Any:
        huggingface_hub.utils.validate_repo_id(model)
        siblings = [SimpleNamespace(rfilename=name) for name in state.files]
        return SimpleNamespace(siblings=siblings, sha="abc")

    def download(model: str, name: str, revision: str | None = None) -> str:
        state.fetched.append((model, name, revision))
        return str(tmp_path / name)

    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", model_info)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    return state


def test_a_model_is_fetched_file_by_file_at_one_revision(hub: SimpleNamespace) -> None:
    seen: list[tuple[str, int, int]] = []
    folder = pull("owner/name", lambda *what: seen.append(what))
    assert folder == hub.folder
    names = ["model_index.json", "unet/a.safetensors", "unet/config.json"]
    assert seen == [(name, number, 3) for number, name in enumerate(names, 1)]
    assert hub.fetched[:3] == [("owner/name", name, "abc") for name in names]


def test_what_is_no_model_of_diffusers_is_refused(hub: SimpleNamespace) -> None:
    with pytest.raises(InvalidRequestError, match="no public model's name"):
        pull("no//name//at all")
    hub.files = ["README.md"]
    with pytest.raises(InvalidRequestError, match=r"no model_index\.json"):
        pull("owner/name")
    assert hub.fetched == []


def test_a_model_that_is_not_here_says_how_to_get_it() -> None:
    with pytest.raises(InvalidRequestError, match="imagelabs pull owner/not-here"):
        read_card("owner/not-here")
    with pytest.raises(InvalidRequestError, match="is not on this machine"):
        read_card("/no/such/folder")


def test_a_model_in_the_cache_is_found(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "model_index.json").write_text('{"_class_name": "FluxPipeline"}')
    found = str(tmp_path / "model_index.json")
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda *_: found)
    card = read_card("black-forest-labs/FLUX.1-schnell")
    assert (card.folder, card.pipeline, card.defaults.steps) == (str(tmp_path), "FluxPipeline", 4)
