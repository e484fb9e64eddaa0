"""``imagelabs serve --engine ...`` and ``imagelabs pull``: the options of the engines."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import attrs
import click

from ..server.engines.catalog import API_KEY_VARIABLE, ENGINES, EngineOptions, build_engine
from .exits import require_extra
from .option_names import Command
from .options import debug_option
from .output import print_result, say

__all__ = ["engine_from", "engine_options", "pull"]

_Function = Callable[..., Any]

_OPTIONS: tuple[tuple[tuple[str, ...], dict[str, Any]], ...] = (
    (("--engine",), {"type": click.Choice(sorted(ENGINES)), "default": "landscape",
                     "show_default": True, "help": "What renders the images."}),
    (("--model",), {"help": "diffusers: a folder or a name, such as stabilityai/sdxl-turbo; "
                            "openai: its name at the back end."}),
    (("--backend", "backends"), {"multiple": True, "metavar": "URL",
                                 "help": "A server that renders; for comfyui may be repeated."}),
    (("--workflow",), {"type": click.Path(exists=True, dir_okay=False, path_type=Path),
                       "help": "comfyui: a workflow, saved with Export (API)."}),
    (("--map", "mapping"), {"multiple": True, "metavar": "NAME=NODE.INPUT",
                            "help": "comfyui: which input a field of a request fills; "
                                    "or output=NODE."}),
    (("--dialect",), {"help": "openai: which server it is, such as localai or sdcpp.  "
                              "[default: generic]"}),
    (("--device",), {"help": "diffusers: where the model runs, such as cuda:0.  "
                             "[default: a GPU, if any]"}),
    (("--dtype",), {"help": "diffusers: its precision: float16, bfloat16, float32."}),
    (("--max-batch",), {"type": int, "help": "Images in one forward pass.  [default: 8]"}),
    (("--batch-wait-ms",), {"type": float,
                            "help": "Milliseconds to wait for a fuller batch.  [default: 20]"}),
    (("--steps",), {"type": int, "help": "Denoising steps, instead of the model's default."}),
    (("--guidance",), {"type": float, "help": "Guidance scale, instead of the model's default."}),
    (("--max-steps",), {"type": int, "help": "Most steps of a request.  [default: 100]"}),
    (("--max-guidance",), {"type": float, "help": "Highest guidance of a request.  [default: 30]"}),
    (("--render-timeout",), {"type": float, "metavar": "SECONDS",
                             "help": "Longest time for one image at a --backend."}),
)  # fmt: skip


def engine_options(function: _Function) -> _Function:
    """Add the options of all engines to a command."""
    for names, settings in reversed(_OPTIONS):
        function = click.option(*names, **settings)(function)
    return function


def engine_from(given: dict[str, Any]) -> Any:
    """Return the engine that a command's options describe.

    Raises:
        InvalidRequestError: They do not fit.
    """
    names = [field.name for field in attrs.fields(EngineOptions) if field.name in given]
    options = EngineOptions(
        **{name: given[name] for name in names}, api_key=os.environ.get(API_KEY_VARIABLE)
    )
    extra = given["engine"] if given["engine"] in ("comfyui", "diffusers") else "server"
    with require_extra(extra):
        return build_engine(given["engine"], options)


@click.command(
    cls=Command,
    short_help="Fetch a model for `imagelabs serve --engine diffusers`.",
    epilog="Example: imagelabs pull stabilityai/sdxl-turbo",
)
@click.argument("model")
@debug_option
def pull(model: str, **_: Any) -> None:
    """Fetch MODEL into the cache of huggingface_hub: safetensors alone, no code.

    What is there is not fetched again, and a download that broke off is continued.
    """
    with require_extra("diffusers"):
        from ..server.engines.diffusers.models import pull as fetch

        folder = fetch(model, lambda name, number, count: say(f"{number}/{count} {name}"))
    print_result(str(folder))
