"""What is known of a model without loading it: its kind, its defaults, the files it needs."""

import json
from collections.abc import Callable, Iterable
from pathlib import Path, PurePosixPath

import attrs

from ....validation import invalid

__all__ = ["Defaults", "ModelCard", "needed_files", "pull", "read_card"]

_INDEX = "model_index.json"


@attrs.frozen(kw_only=True)
class Defaults:
    """What a model renders with unless somebody asks for something else.

    Attributes:
        steps: Denoising steps; `None`: the pipeline's own default.
        guidance: Guidance scale; 0.0: none; `None`: the pipeline's own default.
        trailing: Whether the timesteps must be spaced from the end, as distilled models need it.
    """

    steps: int | None = None
    guidance: float | None = None
    trailing: bool = False


_BY_NAME = {
    "sdxl-turbo": Defaults(steps=4, guidance=0.0, trailing=True),
    "sd-turbo": Defaults(steps=4, guidance=0.0, trailing=True),
    "z-image-turbo": Defaults(steps=9, guidance=0.0),
    "flux.1-schnell": Defaults(steps=4, guidance=0.0),
}
_BY_PIPELINE = {
    "StableDiffusionPipeline": Defaults(steps=25, guidance=7.5),
    "StableDiffusionXLPipeline": Defaults(steps=30, guidance=5.0),
    "StableDiffusion3Pipeline": Defaults(steps=28, guidance=4.5),
    "FluxPipeline": Defaults(steps=28, guidance=3.5),
}
_IMAGE_TO_IMAGE = frozenset(
    {
        "FluxPipeline",
        "KolorsPipeline",
        "LatentConsistencyModelPipeline",
        "QwenImagePipeline",
        "StableDiffusion3Pipeline",
        "StableDiffusionPipeline",
        "StableDiffusionXLPipeline",
        "ZImagePipeline",
    }
)


@attrs.frozen(kw_only=True)
class ModelCard:
    """What a model's index says.

    Attributes:
        folder: Where its files are.
        pipeline: The class that runs it, such as ``"StableDiffusionXLPipeline"``.
        has_convolutions: Whether its denoiser is a UNet, so that images can be made to tile.
        defaults: What it renders with.
    """

    folder: str
    pipeline: str
    has_convolutions: bool
    defaults: Defaults

    @property
    def image_to_image(self) -> bool:
        """Whether it can start from an image."""
        return self.pipeline in _IMAGE_TO_IMAGE


def read_card(model: str) -> ModelCard:
    """Return what the index of a model on this machine says.

    Args:
        model: A folder, or a name such as ``"stabilityai/sdxl-turbo"`` whose files `pull` has
            brought here.

    Raises:
        InvalidRequestError: It is not on this machine, or is no diffusers model.
    """
    folder = Path(model) if Path(model).is_dir() else _cached_folder(model)
    if folder is None:
        raise invalid("model", model, f"is not on this machine: run `imagelabs pull {model}` first")
    try:
        index = json.loads((folder / _INDEX).read_text(encoding="utf-8"))
        pipeline = str(index["_class_name"])
    except (OSError, ValueError, KeyError, TypeError) as exc:
        raise invalid("model", model, f"holds no {_INDEX} that can be read") from exc
    name = PurePosixPath(model).name.lower()
    defaults = _BY_NAME.get(name) or _BY_PIPELINE.get(pipeline) or Defaults()
    return ModelCard(
        folder=str(folder),
        pipeline=pipeline,
        has_convolutions="unet" in index,
        defaults=defaults,
    )


def _cached_folder(model: str) -> Path | None:
    """Find a model in the cache of huggingface_hub; no request is sent."""
    from huggingface_hub import try_to_load_from_cache  # with the extra alone, and 0.3 s late
    from huggingface_hub.errors import HFValidationError

    try:
        found = try_to_load_from_cache(model, _INDEX)
    except HFValidationError:
        return None
    return Path(found).parent if isinstance(found, str) else None


# Fetching -----------------------------------------------------------------------------------


def needed_files(names: Iterable[str]) -> list[str]:
    """Choose the files of a repository that a pipeline loads.

    Configurations, vocabularies and safetensors in folders; of weights that exist in half
    precision, that variant alone. No pickles and no code.
    """
    names = list(names)
    weights = [name for name in names if name.endswith(".safetensors") and "/" in name]
    halves = {str(PurePosixPath(name).parent) for name in weights if ".fp16." in name}
    chosen = [
        name
        for name in weights
        if (".fp16." in name) == (str(PurePosixPath(name).parent) in halves)
        and not any(variant in name for variant in (".non_ema.", ".bf16."))
    ]
    texts = [
        name
        for name in names
        if name.endswith((".json", ".txt", ".model", ".jinja")) and not name.startswith(".")
    ]
    indexes = [name for name in texts if name.endswith(".safetensors.index.json")]
    keep_index = {name for name in indexes if ".fp16." in name or _folder(name) not in halves}
    return sorted(chosen + [name for name in texts if name not in indexes or name in keep_index])


def _folder(name: str) -> str:
    return str(PurePosixPath(name).parent)


def pull(model: str, on_file: Callable[[str, int, int], object] = lambda *_: None) -> Path:
    """Download what a model needs into the cache of huggingface_hub, and return its folder.

    Files that are there are not fetched again, and a download that broke off is continued. It
    needs the network, and for some models an account (``HF_TOKEN``).

    Args:
        model: Such as ``"stabilityai/sdxl-turbo"``.
        on_file: Called before each file with its name, its number from 1, and their count.

    Raises:
        InvalidRequestError: There is no such model, or it is no diffusers model.
        OSError: The network failed.
    """
    import huggingface_hub
    from huggingface_hub.errors import HFValidationError, RepositoryNotFoundError

    try:
        info = huggingface_hub.HfApi().model_info(model)
    except (HFValidationError, RepositoryNotFoundError) as exc:
        raise invalid("model", model, "is no public model's name, like owner/name") from exc
    names = [entry.rfilename for entry in info.siblings or ()]
    if _INDEX not in names:
        raise invalid("model", model, f"is no diffusers model: it has no {_INDEX}")
    files = needed_files(names)
    for number, name in enumerate(files, 1):
        on_file(name, number, len(files))
        huggingface_hub.hf_hub_download(model, name, revision=info.sha)
    return Path(huggingface_hub.hf_hub_download(model, _INDEX)).parent
