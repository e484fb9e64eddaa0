"""A ComfyUI workflow and the places in it that a request fills in."""

import copy
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import attrs

from ....validation import invalid, invalid_secret

__all__ = ["NAMES", "Workflow"]

Graph = dict[str, Any]
Place = tuple[str, str]  # a node's id, an input's name

NAMES = frozenset({"prompt", "negative_prompt", "seed", "subseed", "subseed_strength"}) | frozenset(
    {"width", "height", "steps", "guidance", "image", "strength"}
)
"""What a request can fill in."""

_FIELDS = {"image": "reference_image", "strength": "reference_strength"}  # others have one name
_PLACE = re.compile(r"(?P<name>[a-z_]+)=(?P<node>[^.=\s]+)(?:\.(?P<input>\S+))?\Z")
_MAX_DEPTH = 50  # links followed from a sampler back to its text


@attrs.frozen
class Workflow:
    """A graph in the API's format, with the places that a request fills in.

    Attributes:
        graph: Node ids to ``{"class_type": ..., "inputs": {...}}``.
        places: For each of `NAMES` that is mapped, where its value goes.
        output: Id of the node whose first image is the result.
    """

    graph: Graph = attrs.field(repr=lambda graph: f"<{len(graph)} nodes>", hash=False)
    places: Mapping[str, tuple[Place, ...]] = attrs.field(hash=False)
    output: str

    @classmethod
    def parse(cls, text: str, mapping: Iterable[str] = ()) -> "Workflow":
        """Read a workflow that ComfyUI has exported in the API's format.

        Args:
            text: The file's content.
            mapping: Such as ``"prompt=6.text"`` and ``"output=9"``. What is not named is guessed,
                which works for the stock graph: one sampler, its texts, its empty latent image.

        Raises:
            InvalidRequestError: It is no such workflow, a place does not exist, or prompt or
                output is neither named nor to be guessed.
        """
        graph = _graph(text)
        named, output = _mapping(graph, mapping)
        guessed = _guess(graph)
        places = {**guessed, **named}
        if "prompt" not in places:
            raise invalid_secret("map", "name the prompt's place, such as prompt=6.text")
        output = output or _guess_output(graph)
        if not output:
            raise invalid_secret("map", "name the node that saves the image, such as output=9")
        return cls(graph, places, output)

    @property
    def takes(self) -> frozenset[str]:
        """The names of the request's fields that have a place."""
        return frozenset(_FIELDS.get(name, name) for name in self.places)

    def filled(self, values: Mapping[str, Any]) -> Graph:
        """Return a graph with each of `values` in its places; names without one are left out."""
        graph = copy.deepcopy(self.graph)
        for name, value in values.items():
            for node, field in self.places.get(name, ()):
                graph[node]["inputs"][field] = value
        return graph

    def mismatches(self, object_info: Mapping[str, Any]) -> list[str]:
        """Return what a server with these nodes could not run, in words; empty: nothing.

        Args:
            object_info: The answer to ``GET /object_info``.
        """
        found = []
        for node, parts in self.graph.items():
            if parts["class_type"] not in object_info:
                found.append(f"node {node}: the server has no {parts['class_type']}")
        for name, places in self.places.items():
            for node, field in places:
                info = object_info.get(self.graph[node]["class_type"])
                if info is not None and field not in _inputs(info):
                    found.append(f"{name}={node}.{field}: the node has no such input")
        info = object_info.get(self.graph[self.output]["class_type"])
        if info is not None and not info.get("output_node"):
            found.append(f"output={self.output}: the node saves nothing")
        return found


def _inputs(info: Mapping[str, Any]) -> set[str]:
    known = info.get("input")
    kinds = known if isinstance(known, dict) else {}
    return {name for kind in ("required", "optional") for name in kinds.get(kind) or {}}


def _graph(text: str) -> Graph:
    try:
        graph = json.loads(text)
    except (ValueError, RecursionError) as exc:
        raise invalid_secret("workflow", "must be JSON") from exc
    if isinstance(graph, dict) and isinstance(graph.get("nodes"), list):
        raise invalid_secret("workflow", 'must be in the API\'s format: use "Export (API)"')
    usable = isinstance(graph, dict) and graph and all(map(_is_node, graph.values()))
    if not usable:
        raise invalid_secret("workflow", "must map node ids to class_type and inputs")
    checked: Graph = graph
    return checked


def _is_node(node: object) -> bool:
    return (
        isinstance(node, dict)
        and isinstance(node.get("class_type"), str)
        and isinstance(node.get("inputs"), dict)
    )


def _mapping(graph: Graph, mapping: Iterable[str]) -> tuple[dict[str, tuple[Place, ...]], str]:
    places: dict[str, tuple[Place, ...]] = {}
    output = ""
    for text in mapping:
        found = _PLACE.match(text)
        wanted = found and (found["name"] == "output") == (found["input"] is None)
        if not found or not wanted or found["name"] not in NAMES | {"output"}:
            known = ", ".join(sorted(NAMES))
            raise invalid("map", text, f"must be NAME=NODE.INPUT or output=NODE; names: {known}")
        if found["node"] not in graph:
            raise invalid("map", text, "there is no such node in the workflow")
        if found["name"] == "output":
            output = found["node"]
            continue
        if found["input"] not in graph[found["node"]]["inputs"]:
            raise invalid("map", text, "the node has no such input in the workflow")
        places[found["name"]] = (
            *places.get(found["name"], ()),
            (found["node"], found["input"]),
        )
    return places, output


# Guessing ---------------------------------------------------------------------------------


def _guess(graph: Graph) -> dict[str, tuple[Place, ...]]:
    """Find the places of a graph with one sampler that has both conditionings; else none."""
    samplers = [
        node
        for node, parts in graph.items()
        if {"positive", "negative", "latent_image"} <= set(parts["inputs"])
    ]
    if len(samplers) != 1:
        return {}
    (sampler,) = samplers
    found = dict(_sampler_places(graph, sampler))
    prompt = _texts(graph, graph[sampler]["inputs"]["positive"])
    negative = _texts(graph, graph[sampler]["inputs"]["negative"])
    found["prompt"] = prompt
    if not set(negative) & set(prompt):
        found["negative_prompt"] = negative
    latent = _upstream(graph, graph[sampler]["inputs"]["latent_image"], ("width", "height"))
    if latent is not None:
        found["width"], found["height"] = ((latent, "width"),), ((latent, "height"),)
    return {name: places for name, places in found.items() if places}


def _sampler_places(graph: Graph, sampler: str) -> Iterator[tuple[str, tuple[Place, ...]]]:
    inputs = graph[sampler]["inputs"]
    for name, fields in (
        ("seed", ("seed", "noise_seed")),
        ("steps", ("steps",)),
        ("guidance", ("cfg",)),
    ):
        for field in fields:
            if field in inputs and not isinstance(inputs[field], list):
                yield name, ((sampler, field),)


def _texts(graph: Graph, link: object) -> tuple[Place, ...]:
    """Find the text inputs of the first node upstream that has any (SDXL's encoder has two)."""
    for fields in (("text",), ("text_g", "text_l"), ("clip_l", "t5xxl")):
        node = _upstream(graph, link, fields)
        if node is not None:
            return tuple((node, field) for field in fields)
    return ()


def _upstream(graph: Graph, link: object, fields: tuple[str, ...]) -> str | None:
    """Follow a link back, by the first linked input, to a node with plain values for `fields`."""
    for _ in range(_MAX_DEPTH):
        if not isinstance(link, list) or not link or str(link[0]) not in graph:
            return None
        node = str(link[0])
        inputs = graph[node]["inputs"]
        if all(field in inputs and not isinstance(inputs[field], list) for field in fields):
            return node
        link = inputs.get("conditioning") or inputs.get("samples")
    return None


def _guess_output(graph: Graph) -> str:
    saving = [node for node, parts in graph.items() if parts["class_type"] == "SaveImage"]
    return saving[0] if len(saving) == 1 else ""
