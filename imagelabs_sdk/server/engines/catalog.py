"""The engines of this package by name, and how the operator's options make one."""

import logging
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from pathlib import Path

import attrs

from ...errors import APIConnectionError
from ...validation import invalid, invalid_secret
from .base import EngineConfig, RenderError
from .tuning import Limits

__all__ = ["API_KEY_VARIABLE", "ENGINES", "EngineOptions", "build_engine"]

log = logging.getLogger(__name__)

API_KEY_VARIABLE = "IMAGELABS_BACKEND_API_KEY"
"""The environment variable that holds the key for a back end."""


@attrs.frozen(kw_only=True)
class EngineOptions:
    """What the operator says; `None` or empty: nothing. Not every engine takes everything.

    Attributes:
        duration: Seconds for an image of the landscape engine.
        workers: Workers that load the engine, or requests under way at a back end.
        model: A folder or a name.
        backends: Addresses of back ends.
        workflow: A file that ComfyUI has exported in the API's format.
        mapping: Places in it, such as ``"prompt=6.text"``.
        dialect: Which kind of server speaks the OpenAI images API.
        api_key: For a back end; from the environment.
        device, dtype: Where and in which precision a model runs.
        max_batch: Images in one forward pass at most.
        batch_wait_ms: Milliseconds to wait for more requests of the same shape.
        steps, guidance: Instead of the model's defaults.
        max_steps, max_guidance: What a request may ask for at most.
        render_timeout: Seconds for one image at a back end.
    """

    duration: float | None = None
    workers: int | None = None
    model: str | None = None
    backends: tuple[str, ...] = ()
    workflow: Path | None = None
    mapping: tuple[str, ...] = ()
    dialect: str | None = None
    api_key: str | None = attrs.field(default=None, repr=False)
    device: str | None = None
    dtype: str | None = None
    max_batch: int | None = None
    batch_wait_ms: float | None = None
    steps: int | None = None
    guidance: float | None = None
    max_steps: int | None = None
    max_guidance: float | None = None
    render_timeout: float | None = None

    def said(self, *names: str) -> dict[str, object]:
        """Return those of `names` that the operator has said."""
        given = {name: getattr(self, name) for name in names}
        return {name: value for name, value in given.items() if value not in (None, ())}

    @property
    def limits(self) -> Limits:
        """What a request may ask for."""
        return Limits(**self.said("max_steps", "max_guidance"))  # type: ignore[arg-type]


def build_engine(name: str, options: EngineOptions) -> EngineConfig:
    """Return the configuration of an engine.

    It may read files and ask back ends what they can do, but loads no model.

    Args:
        name: A key of `ENGINES`.
        options: What the operator says.

    Raises:
        InvalidRequestError: There is no such engine, it does not take an option or misses one,
            or what an option names cannot be used.
    """
    if name not in ENGINES:
        raise invalid("engine", name, f"must be one of {', '.join(sorted(ENGINES))}")
    build, taken = ENGINES[name]
    every = [field.name for field in attrs.fields(EngineOptions) if field.name != "api_key"]
    for option in options.said(*every):
        if option not in taken:
            flag = f"--{_FLAGS.get(option, option.replace('_', '-'))}"
            raise invalid_secret(option, f"{flag} is no option of the engine {name}")
    return build(options)


_FLAGS = {"backends": "backend", "mapping": "map"}


def _landscape(options: EngineOptions) -> EngineConfig:
    from .landscape import LandscapeEngine

    said = options.said("duration", "workers", "max_batch")
    return LandscapeEngine(**said, **_batch_wait(options))  # type: ignore[arg-type]


def _batch_wait(options: EngineOptions) -> dict[str, object]:
    milliseconds = options.batch_wait_ms
    return {} if milliseconds is None else {"batch_wait": milliseconds / 1000}


def _diffusers(options: EngineOptions) -> EngineConfig:
    from .diffusers import DiffusersConfig
    from .diffusers.models import read_card

    if options.model is None:
        raise invalid_secret("model", "--model is needed, such as stabilityai/sdxl-turbo")
    for module in ("torch", "diffusers", "transformers"):
        if find_spec(module) is None:  # the worker would find out, again and again
            raise ImportError(f"No module named {module!r}")
    said = options.said("device", "dtype", "max_batch", "steps", "guidance", "workers")
    return DiffusersConfig(
        model=options.model,
        card=read_card(options.model),
        limits=options.limits,
        **said,  # type: ignore[arg-type]
        **_batch_wait(options),  # type: ignore[arg-type]
    )


def _openai(options: EngineOptions) -> EngineConfig:
    from .openai import OpenAIConfig

    if len(options.backends) != 1:
        raise invalid_secret("backend", "--backend is needed once, like http://127.0.0.1:8080/v1")
    said = options.said("model", "dialect", "workers", "api_key")
    return OpenAIConfig(
        backend=options.backends[0],
        limits=options.limits,
        **said,  # type: ignore[arg-type]
        **_timeout(options),  # type: ignore[arg-type]
    )


def _timeout(options: EngineOptions) -> dict[str, float]:
    seconds = options.render_timeout
    return {} if seconds is None else {"timeout": seconds}


def _comfyui(options: EngineOptions) -> EngineConfig:
    from .comfyui import ComfyUIConfig, Workflow

    if options.workflow is None:
        raise invalid_secret("workflow", "--workflow is needed: a file of ComfyUI's Export (API)")
    try:
        text = options.workflow.read_text(encoding="utf-8")
    except (OSError, ValueError) as exc:
        raise invalid("workflow", str(options.workflow), "cannot be read") from exc
    config = ComfyUIConfig(
        backends=options.backends,
        workflow=Workflow.parse(text, options.mapping),
        limits=options.limits,
        **_timeout(options),
    )
    _ask_comfyui(config)
    return config


def _ask_comfyui(config: "EngineConfig") -> None:
    """Refuse a workflow that a server cannot run; a server that is down is waited for later."""
    from .comfyui.engine import ComfyUIEngine

    for worker in range(config.workers):
        engine = config.load(worker)
        assert isinstance(engine, ComfyUIEngine)
        try:
            engine.check_workflow()
        except RenderError as exc:
            raise invalid_secret("workflow", f"{engine.backend.url}: {exc.message}") from exc
        except APIConnectionError as exc:
            log.warning("%s does not answer yet: %s", engine.backend.url, exc.message)
        finally:
            engine.close()


_BOUNDS = frozenset({"max_steps", "max_guidance"})

ENGINES: Mapping[str, tuple[Callable[[EngineOptions], EngineConfig], frozenset[str]]] = {
    "landscape": (_landscape, frozenset({"duration", "workers", "max_batch", "batch_wait_ms"})),
    "diffusers": (
        _diffusers,
        _BOUNDS
        | {
            "model",
            "device",
            "dtype",
            "max_batch",
            "batch_wait_ms",
            "steps",
            "guidance",
            "workers",
        },
    ),
    "openai": (
        _openai,
        _BOUNDS | {"backends", "model", "dialect", "workers", "render_timeout"},
    ),
    "comfyui": (_comfyui, _BOUNDS | {"backends", "workflow", "mapping", "render_timeout"}),
}
"""How each engine is made, and which options it takes."""
