"""The JSON beside an image that says how it was made."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ._files import atomic_write

__all__ = ["read_sidecar", "sidecar_path", "write_sidecar"]

_VERSION = 1
_HIDDEN = ("prompt", "negative_prompt", "reference_image")  # a person's own business
_PARTS = ("request", "info", "metadata")
_MAX_SIDECAR = 1024 * 1024  # bytes


def sidecar_path(path: Path) -> Path:
    """Return the path of the JSON beside an image: ``x.png.json``."""
    return path.with_name(path.name + ".json")


def write_sidecar(
    path: Path,
    fields: Mapping[str, Any],
    info: Mapping[str, Any] | None,
    metadata: Mapping[str, Any],
    *,
    prompt: bool,
) -> None:
    """Write beside an image what made it; never a task id.

    Args:
        path: The image.
        fields: Those of its request; empty when it is not known.
        info: How the service says that it was made.
        metadata: The caller's labels.
        prompt: True: with the prompts and the reference image.

    Raises:
        OSError: It cannot be written.
    """
    shown = {name: value for name, value in fields.items() if prompt or name not in _HIDDEN}
    facts = {"version": _VERSION, "image": path.name, "request": shown}
    facts.update({"info": dict(info or {}), "metadata": dict(metadata)})
    with atomic_write(sidecar_path(path)) as draft:
        draft.file.write(json.dumps(facts, indent=2, ensure_ascii=False).encode())


def read_sidecar(path: Path) -> dict[str, dict[str, Any]]:
    """Return the ``request``, ``info`` and ``metadata`` beside an image; each may be empty."""
    try:
        with open(sidecar_path(path), "rb") as file:
            facts = json.loads(file.read(_MAX_SIDECAR))
    except (OSError, ValueError, RecursionError):
        facts = None
    found = facts if isinstance(facts, dict) else {}
    return {name: found[name] if isinstance(found.get(name), dict) else {} for name in _PARTS}
