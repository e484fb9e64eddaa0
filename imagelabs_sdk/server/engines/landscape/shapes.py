"""Outlines of what stands in a procedural image: pure geometry, in pixels."""

import itertools
import math
import random
from collections.abc import Iterator

import attrs

from .scene import Frame, Outline, Point, Ridge

__all__ = [
    "Lighthouse",
    "beams",
    "bird",
    "boat",
    "conifer",
    "headland",
    "lighthouse",
    "shade",
    "snow",
    "spire",
    "windows",
]

# Mountains ----------------------------------------------------------------------------


def shade(frame: Frame, ridge: Ridge, x: float, light: float, chance: random.Random) -> Outline:
    """From a summit to the valley away from the `light`, and back up a jagged edge."""
    left, top = frame.on(ridge, x)
    side = 1 if left > light else -1
    rim = [frame.on(ridge, x + side * ridge.stride * i / 24) for i in range(25)]
    edge, aside = [], 0.0
    for step in range(1, 10):
        aside += side * chance.uniform(-0.10, 0.13) * ridge.stride
        edge.append((left + aside * frame.unit, top + step * 0.17 * ridge.swing * frame.unit))
    return [*rim, *reversed(edge)]


def snow(frame: Frame, ridge: Ridge, x: float, side: int, chance: random.Random) -> Outline:
    """From a summit down one side to a jagged line; perhaps no more than a point, given twice."""
    top = frame.on(ridge, x)[1]
    deep = 0.22 * (ridge.crest(x) + ridge.swing) * frame.unit
    rim = (frame.on(ridge, x + side * ridge.stride * i / 16) for i in range(16))
    cap = list(itertools.takewhile(lambda point: point[1] < top + deep, rim))
    edge = [(left, max(y, top + deep * chance.uniform(0.5, 1.6))) for left, y in cap[:-1]]
    return [*cap, cap[-1], *reversed(edge)]


# What grows and is built ----------------------------------------------------------------


def conifer(x: float, y: float, size: float) -> Iterator[Outline]:
    """Return a fir of four tiers that stands on (x, y)."""
    for tier in range(4):
        top, foot = y - size * (1.0 - 0.17 * tier), y - size * (0.64 - 0.2 * tier)
        half = 0.19 * size * (0.38 + 0.21 * tier)
        yield [(x, top), (x + half, foot), (x - half, foot)]


def spire(x: float, y: float, size: float) -> Iterator[Outline]:
    """Return a mast on a roof, on (x, y)."""
    half = 0.025 * size
    yield [(x - half, y), (x, y - size), (x + half, y)]


def windows(frame: Frame, ridge: Ridge, chance: random.Random) -> Iterator[tuple[Outline, float]]:
    """Yield the lit windows of a skyline, with how bright each is."""
    edge = frame.width / frame.unit / 2
    for column in range(math.ceil(2 * edge / 0.011)):
        x = column * 0.011 - edge
        roof = min(ridge.crest(x - 0.003), ridge.crest(x + 0.007))
        for floor in range(1, 14):
            if chance.random() < 0.3:
                left = x * frame.unit + frame.width / 2
                top = ridge.base * frame.height - frame.unit * (roof - floor * 0.017)
                yield _box(left, top, 0.0045 * frame.unit, 0.008 * frame.unit), chance.random()


def _box(left: float, top: float, across: float, down: float) -> Outline:
    right, foot = left + across, top + down
    return [(left, top), (right, top), (right, foot), (left, foot)]


# At sea and in the air --------------------------------------------------------------------


def boat(x: float, y: float, size: float) -> tuple[Outline, list[Outline]]:
    """Its hull, and its two sails."""
    hull = [(-0.7, -0.12), (0.8, -0.12), (0.5, 0.12), (-0.5, 0.12)]
    sails = [[(0.0, -1.5), (0.0, -0.2), (0.75, -0.2)], [(-0.1, -1.2), (-0.1, -0.2), (-0.6, -0.2)]]
    return _at(x, y, size, hull), [_at(x, y, size, sail) for sail in sails]


def bird(x: float, y: float, span: float) -> list[Outline]:
    """Its two wings."""
    wing = [(0.0, 0.0), (0.75, -0.65), (1.6, -0.55), (0.75, -0.42)]
    return [_at(x, y, span, [(side * dx, dy) for dx, dy in wing]) for side in (-1, 1)]


def beams(x: float, y: float, reach: float) -> list[Outline]:
    """Return the light of a lighthouse, to both sides."""
    left = [(0.0, 0.0), (-1.0, -0.02), (-1.0, 0.2)]
    right = [(0.0, 0.0), (1.0, -0.2), (1.0, 0.02)]
    return [_at(x, y, reach, left), _at(x, y, reach, right)]


def headland(
    frame: Frame, x: float, shore: float, size: float, chance: random.Random
) -> tuple[Outline, Point]:
    """Return a cape from the nearer edge to beyond `x`, and the place for a tower on it."""
    side, rise = -1 if x < frame.width / 2 else 1, 0.35 * size
    outside = x + side * frame.width
    top = [(outside, shore - rise)]
    for i in range(25):
        away = (i - 6) / 18
        slope = min(1.0, 1.0 - away) ** 1.5
        rough = 0.03 * chance.random() + 0.1 * max(0.0, away)
        top.append((x - side * (1.5 * away - 0.05) * size, shore - rise * slope + rough * size))
    tip = x - side * 1.4 * size
    land = [(outside, shore + 0.25 * size), *top, (tip, shore + 0.15 * size)]
    return land, (x, shore - 0.97 * rise)


@attrs.frozen
class Lighthouse:
    """Its parts by colour, and where its light is."""

    walls: list[Outline]
    bands: list[Outline]
    glass: list[Outline]
    lamp: Point


def lighthouse(x: float, y: float, size: float) -> Lighthouse:
    """Return a lighthouse with its foot at (x, y)."""

    def storey(low: float, high: float, below: float, above: float) -> Outline:
        sides = [(-below, -low), (below, -low), (above, -high), (-above, -high)]
        return _at(x, y, size, sides)

    return Lighthouse(
        walls=[storey(0.0, 0.92, 0.085, 0.055)],
        bands=[
            storey(0.18, 0.35, 0.079, 0.0735),
            storey(0.52, 0.69, 0.068, 0.0625),
            storey(0.92, 0.95, 0.08, 0.08),
            storey(1.05, 1.14, 0.055, 0.0),
        ],
        glass=[storey(0.95, 1.05, 0.04, 0.04)],
        lamp=(x, y - size),
    )


def _at(x: float, y: float, size: float, outline: Outline) -> Outline:
    return [(x + size * dx, y + size * dy) for dx, dy in outline]
