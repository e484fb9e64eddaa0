"""What each kind of server makes of ``POST /v1/images/generations`` beside prompt and size."""

import json
import re
from collections.abc import Callable, Mapping
from typing import Any

import attrs

from ....models import ImageRequest
from ....validation import invalid_secret
from ..tuning import Tuning

__all__ = ["DIALECTS", "Dialect"]

Fields = dict[str, Any]


@attrs.frozen(kw_only=True)
class Dialect:
    """One kind of server.

    Attributes:
        name: As the operator gives it.
        takes: What it takes of a request, by our names; a reference image goes to
            ``POST /v1/images/edits``.
        extend: Writes what it takes into the fields of the request.
        commands: What in a prompt this server would obey instead of draw: a pattern, and how to
            name it in the refusal.
        sizes: The only sizes that it renders, in pixels; empty: any.
    """

    name: str
    takes: frozenset[str]
    extend: Callable[[Fields, ImageRequest, Tuning], None]
    commands: tuple[tuple[re.Pattern[str], str], ...] = ()
    sizes: tuple[tuple[int, int], ...] = ()

    def check_text(self, request: ImageRequest) -> None:
        """Refuse a prompt or a negative prompt that carries a command.

        Raises:
            InvalidRequestError: It does; the message names the command, not the prompt.
        """
        for field in ("prompt", "negative_prompt"):
            for pattern, label in self.commands:
                if pattern.search(getattr(request, field)):
                    raise invalid_secret(
                        field, f"must not contain {label}: the server behind would obey it"
                    )

    def fields(self, request: ImageRequest, tuning: Tuning, model: str) -> Fields:
        """Return the fields of the request for one image."""
        width, height = self.size(request)
        fields: Fields = {"prompt": request.prompt, "n": 1, "size": f"{width}x{height}"}
        if model:
            fields["model"] = model
        self.extend(fields, request, tuning)
        return fields

    def size(self, request: ImageRequest) -> tuple[int, int]:
        """Return the size to ask for: the one of `sizes` that is nearest in shape, if there are."""
        ratio = request.width / request.height
        known = [(abs(w / h - ratio) / (w / h + ratio), (w, h)) for w, h in self.sizes]
        return min(known)[1] if known else (request.width, request.height)


# Prompts that carry commands -------------------------------------------------------------

_EXTRA_ARGS = (re.compile(r"sd_cpp_extra_args", re.IGNORECASE), "<sd_cpp_extra_args>")
_NETWORK = (
    re.compile(r"<\s*(lora|lyco|hypernet)\s*:", re.IGNORECASE),
    "a network tag such as <lora:...>",
)
_PIPE = (re.compile(r"\|"), '"|"')
_TAGS = (_EXTRA_ARGS, _NETWORK)


# What each takes --------------------------------------------------------------------------


def _set(fields: Fields, values: Mapping[str, Any]) -> None:
    fields.update({name: value for name, value in values.items() if value not in (None, "")})


def _b64(fields: Fields) -> None:
    fields["response_format"] = "b64_json"


def _generic(fields: Fields, request: ImageRequest, _: Tuning) -> None:
    _b64(fields)
    _set(fields, {"negative_prompt": request.negative_prompt, "seed": request.seed})


def _diffusion(fields: Fields, request: ImageRequest, tuning: Tuning) -> None:
    """vLLM-Omni and SGLang: the arguments of diffusers, as fields of their own."""
    _generic(fields, request, tuning)
    _set(fields, {"num_inference_steps": tuning.steps, "guidance_scale": tuning.guidance})


def _sglang(fields: Fields, request: ImageRequest, tuning: Tuning) -> None:
    _diffusion(fields, request, tuning)
    fields["output_format"] = "png"  # its default is JPEG


def _localai(fields: Fields, request: ImageRequest, tuning: Tuning) -> None:
    """LocalAI: the negative prompt stands after a "|" in every version, the rest are fields."""
    _b64(fields)
    if request.negative_prompt.strip():
        fields["prompt"] += f"|{request.negative_prompt}"
    _set(fields, {"seed": _int32(request.seed), "step": tuning.steps})


def _xinference(fields: Fields, request: ImageRequest, tuning: Tuning) -> None:
    """Xinference: the arguments of diffusers as JSON in a text."""
    _b64(fields)
    fields["size"] = fields["size"].replace("x", "*")
    kwargs: Fields = {}
    _set(
        kwargs,
        {
            "negative_prompt": request.negative_prompt,
            "seed": request.seed,
            "num_inference_steps": tuning.steps,
            "guidance_scale": tuning.guidance,
        },
    )
    fields["kwargs"] = json.dumps(kwargs)


def _sdcpp(fields: Fields, request: ImageRequest, tuning: Tuning) -> None:
    """stable-diffusion.cpp: native arguments as JSON in a tag of the prompt, on one line."""
    guidance = {} if tuning.guidance is None else {"guidance": {"txt_cfg": tuning.guidance}}
    sample = guidance if tuning.steps is None else {**guidance, "sample_steps": tuning.steps}
    native: Fields = {"seed": request.seed}
    _set(native, {"negative_prompt": request.negative_prompt})
    if sample:
        native["sample_params"] = sample
    if request.reference_image:
        native["strength"] = request.reference_strength / 100
    fields["prompt"] += f" <sd_cpp_extra_args>{json.dumps(native)}</sd_cpp_extra_args>"
    fields["output_format"] = "png"


def _openai(fields: Fields, request: ImageRequest, _: Tuning) -> None:
    """The OpenAI API itself: it refuses fields that it does not know."""
    if str(fields.get("model", "")).startswith("dall-e"):
        _b64(fields)  # the models of today always answer in base64, and refuse the field
    else:
        fields["output_format"] = "png"


def _int32(seed: int | None) -> int | None:
    """LocalAI keeps a seed in 31 bits: the same seed always becomes the same number."""
    return None if seed is None else seed % 2**31


_SAMPLING = frozenset({"negative_prompt", "seed", "steps", "guidance"})

DIALECTS: Mapping[str, Dialect] = {
    dialect.name: dialect
    for dialect in (
        Dialect(
            name="generic",
            takes=frozenset({"negative_prompt", "seed"}),
            extend=_generic,
            commands=_TAGS,
        ),
        Dialect(
            name="localai",
            takes=_SAMPLING - {"guidance"},
            extend=_localai,
            commands=(*_TAGS, _PIPE),
        ),
        Dialect(
            name="openai",
            takes=frozenset({"reference_image"}),
            extend=_openai,
            sizes=((1024, 1024), (1536, 1024), (1024, 1536)),
        ),
        Dialect(
            name="sdcpp",
            takes=_SAMPLING | {"reference_image", "reference_strength"},
            extend=_sdcpp,
            commands=_TAGS,
        ),
        Dialect(
            name="sglang",
            takes=_SAMPLING | {"reference_image"},
            extend=_sglang,
            commands=_TAGS,
        ),
        Dialect(
            name="vllm-omni",
            takes=_SAMPLING | {"reference_image"},
            extend=_diffusion,
            commands=_TAGS,
        ),
        Dialect(name="xinference", takes=_SAMPLING, extend=_xinference, commands=_TAGS),
    )
}
