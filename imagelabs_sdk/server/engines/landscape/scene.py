"""What a procedural image shows: arithmetic over a request, without a pixel.

Across, places are fractions of the width; down, fractions of the height, from the top. Lengths
are in units, one unit being about the shorter side, so that a scene can be painted at any size.
"""

import colorsys
import hashlib
import math
import random
import re
from collections.abc import Iterator, Sequence
from typing import Literal, TypeVar

import attrs

from ....models import ImageRequest

__all__ = [
    "TAKES",
    "Cloud",
    "Color",
    "Disc",
    "Frame",
    "Outline",
    "Palette",
    "Point",
    "Ridge",
    "Scene",
    "Sprig",
    "compose",
    "dice",
    "mix",
]

Color = tuple[int, int, int]
Point = tuple[float, float]
Outline = list[Point]
Curve = Literal["straight", "smooth", "dune", "mesa", "step"]
DiscKind = Literal["sun", "bars", "moon", "crescent", "planet"]
T = TypeVar("T")

TAKES = frozenset({"negative_prompt", "tiling"})
"""The fields that change an image, besides prompt, size and both seeds."""


def dice(*words: object) -> random.Random:
    """Chance that depends on `words` alone: not on the process, the time or the hash seed."""
    text = "\0".join(map(str, words)).encode("utf-8", "surrogatepass")
    return random.Random(int.from_bytes(hashlib.sha256(text).digest(), "big"))


def mix(one: Color, other: Color, part: float) -> Color:
    """`one` at 0.0, `other` at 1.0."""
    red, green, blue = (round(a + (b - a) * part) for a, b in zip(one, other, strict=True))
    return red, green, blue


def _choose(chance: random.Random, options: Sequence[T]) -> T:
    # Not Random.choice: only random() draws the same numbers in every version of Python.
    return options[int(chance.random() * len(options))]


# Colours ------------------------------------------------------------------------------


@attrs.frozen
class Palette:
    """Five colours that go together.

    Attributes:
        top, mid, low: The sky, down to the horizon.
        light: The sun or the moon.
        near: What stands in front, almost a silhouette.
    """

    top: Color
    mid: Color
    low: Color
    light: Color
    near: Color

    @property
    def dark(self) -> bool:
        """Return True if stars are out and windows are lit."""
        return sum(self.top) < 190

    @property
    def glows(self) -> bool:
        """Return True if the light is brighter than the sky; an ink print's red sun is not."""
        return sum(self.light) > 560

    @property
    def white(self) -> Color:
        """Of snow, clouds and sails."""
        return self.light if self.glows else self.low

    def turned(self, angle: float) -> "Palette":
        """All hues turned by `angle`, a part of the whole circle."""
        return Palette(*(_turned(color, angle) for color in attrs.astuple(self)))


def _turned(color: Color, angle: float) -> Color:
    hue, lightness, saturation = colorsys.rgb_to_hls(*(value / 255 for value in color))
    red, green, blue = colorsys.hls_to_rgb((hue + angle) % 1.0, lightness, saturation)
    return round(red * 255), round(green * 255), round(blue * 255)


def _palette(line: str) -> Palette:
    return Palette(*((value >> 16, value >> 8 & 255, value & 255) for value in _hex(line)))


def _hex(line: str) -> list[int]:
    return [int(word, 16) for word in line.split()]


_PALETTES = {
    "dusk": (
        "2b2d5b 8a4f7d f3a683 ffe3b3 1f1b33",
        "4a1942 c8443f fca652 ffe8a3 2a0f26",
        "0b3142 1f7a8c f2c9a1 fff1d0 08202b",
        "1b1464 7b2d8b ff7eb6 fff3b0 150a33",
        "3d1230 9e2a45 ee6c4d ffd6a5 1a0815",
        "264653 2a9d8f e9c46a fff2cc 1b2f38",
        "355070 b56576 eaac8b fff0d9 26243b",
    ),
    "day": (
        "4f86b5 aecbe0 fde8d0 fff6e0 1d3a4a",
        "3fa7c9 9fd3d6 fbe3b5 fffdf0 6b3329",
        "7fa99b b7cfb7 eef0d5 fffbe6 12302b",
        "5f6caf b39bc8 f6d6c9 fff0e5 2e2a4f",
        "5d93b0 d5c9a8 f6c177 fff3cf 4a1f12",
        "c9c5b9 dedacd f1ede2 c8452f 26282b",
        "2a6f77 7cc6b5 f7f3c6 ffffff 123b40",
        "a0643a dfa45f f9e0a5 fffbe3 3a2119",
        "1e3a6d 5d8ac4 f9d5bb fff3e2 14233f",
        "8fa6bd c5d3e0 f4f6f8 ffffff 33445a",
    ),
    "night": (
        "070b1f 14254a 3d5a80 f4f1de 050812",
        "03121f 0b3b46 2a9d8f e9f5db 020a10",
        "0d0b26 2d1e56 6f4a8e ffe9d6 090618",
        "0a1628 20415f 8fb3b0 fdf6e3 060d18",
    ),
}


# The land -----------------------------------------------------------------------------


@attrs.frozen
class Land:
    """A kind of country; pairs are of the farthest and of the nearest ridge.

    Attributes:
        words: Of a prompt, that lead here.
        ridges: How many, at least.
        curve, octaves, gain: The shape of a ridge; see `Ridge`.
        swing: How far ridges rise and fall, in units.
        stride: Units from hill to hill.
        trees: Their height in units; 0.0: none.
        rugged: How many ridges have the shape above; those before them are soft hills.
        water: Whether it lies at a shore.
    """

    words: str
    ridges: int
    curve: Curve
    octaves: int
    gain: float
    swing: tuple[float, float]
    stride: float
    trees: tuple[float, float] = (0.0, 0.0)
    rugged: int = 99
    water: bool = False


_LANDS = {
    "peaks": Land(
        "mountain mountains alps peak peaks snow winter dragon",
        6, "straight", 6, 0.47, (0.22, 0.06), 0.27, (0.0, 0.13), rugged=2,
    ),
    "hills": Land(
        "hill hills meadow field fields valley village farm garden spring",
        6, "smooth", 3, 0.35, (0.07, 0.09), 0.75, (0.0, 0.035),
    ),
    "dunes": Land(
        "desert dune dunes sand sahara camel mars", 5, "dune", 2, 0.22, (0.08, 0.16), 0.7
    ),
    "forest": Land(
        "forest wood woods tree trees jungle wolf fox deer autumn",
        6, "smooth", 4, 0.45, (0.10, 0.07), 0.55, (0.015, 0.15),
    ),
    "mesas": Land(
        "canyon mesa west western cowboy rock rocks", 5, "mesa", 3, 0.4, (0.16, 0.07), 0.3
    ),
    "lake": Land(
        "lake river pond fjord boat swan", 3, "straight", 6, 0.47, (0.24, 0.02), 0.3,
        (0.0, 0.05), rugged=2, water=True,
    ),
    "sea": Land(
        "sea ocean beach island ship whale pirate sailing boats",
        2, "smooth", 5, 0.5, (0.05, 0.03), 0.5, water=True,
    ),
    "cape": Land(
        "lighthouse coast cape cliff harbour harbor storm",
        2, "smooth", 5, 0.5, (0.05, 0.02), 0.5, water=True,
    ),
    "city": Land(
        "city town street skyline tower towers building cyberpunk robot metropolis castle",
        3, "step", 3, 0.55, (0.20, 0.11), 0.11, (0.0, 0.05), water=True,
    ),
}  # fmt: skip
_HOURS = {
    "night": "night midnight moon moonlight moonlit stars star starry space galaxy dark aurora",
    "dusk": "dusk sunset sunrise dawn evening twilight neon cyberpunk",
    "day": "day noon morning sunny snow winter spring",
}
_DISCS: dict[str, tuple[DiscKind, ...]] = {
    "night": ("moon", "moon", "crescent", "planet"),
    "dusk": ("sun", "sun", "bars", "bars", "crescent", "planet"),
    "day": ("sun",),
}
_LATTICE = 64


@attrs.frozen(kw_only=True)
class Ridge:
    """A line of hills with everything below it.

    Attributes:
        base: Its middle height.
        swing: It rises and falls by so many units.
        stride: Units from hill to hill.
        curve: How the line goes from one lattice point to the next.
        octaves: How many ever finer lines are added up.
        gain: How much flatter each of them is than the one before.
        lattice: Heights at every stride, 0.0 to 1.0.
        period: Strides after which the line repeats.
        color: At the top.
        foot: The mist below.
        growth: Height of what grows or is built on it, in units; 0.0: nothing.
        seed: Of what grows.
        lit: Whether sun and shade, snow and windows are seen on it.
    """

    base: float
    swing: float
    stride: float
    curve: Curve
    octaves: int
    gain: float
    lattice: tuple[float, ...]
    period: int = _LATTICE
    color: Color
    foot: Color
    growth: float = 0.0
    seed: str = ""
    lit: bool = False

    def crest(self, x: float) -> float:
        """Return how high the line is above its base at `x`, both in units."""
        place, share, height, whole = x / self.stride, 1.0, 0.0, 0.0
        cells, size = self.period, len(self.lattice)
        for octave in range(self.octaves):
            cell = math.floor(place)
            part = _ease(self.curve, place - cell)
            here = self.lattice[(cell % cells + 17 * octave) % size]
            there = self.lattice[((cell + 1) % cells + 17 * octave) % size]
            height += share * (here + (there - here) * part)
            whole += share
            share, place, cells = share * self.gain, place * 2.0, cells * 2
        return self.swing * (2.0 * height / whole - 1.0)


def _ease(curve: Curve, part: float) -> float:
    if curve == "smooth":
        return part * part * (3.0 - 2.0 * part)
    if curve == "dune":
        return part * part
    if curve == "mesa":
        return min(1.0, max(0.0, 6.0 * part - 2.5))
    return 0.0 if curve == "step" else part


@attrs.frozen
class Frame:
    """The size of an image in pixels, and of a unit in it."""

    width: int
    height: int
    unit: float = attrs.field(init=False)

    @unit.default
    def _unit(self) -> float:
        return min(float(self.height), 1.25 * self.width)

    def on(self, ridge: Ridge, x: float) -> Point:
        """Return the point of a ridge's crest at `x` units right of the middle."""
        y = ridge.base * self.height - self.unit * ridge.crest(x)
        return x * self.unit + self.width / 2, y

    def crest(self, ridge: Ridge) -> Outline:
        """Return a ridge's whole crest, a point a pixel, from two beyond the left edge."""
        middle = self.width / 2
        return [self.on(ridge, (x - middle) / self.unit) for x in range(-2, self.width + 3)]

    def summits(self, ridge: Ridge) -> Iterator[float]:
        """Where the crest is higher than a stride to either side, in units from the middle."""
        edge = math.ceil(self.width / 2 / self.unit / ridge.stride) + 1
        for cell in range(-edge, edge + 1):
            x = cell * ridge.stride
            sides = (ridge.crest(x + side * ridge.stride) for side in (-1, 1))
            if ridge.crest(x) > max(sides):
                yield x


# The whole image -----------------------------------------------------------------------


@attrs.frozen
class Disc:
    """The sun or the moon: its kind, its place and its radius in units."""

    kind: DiscKind
    x: float
    y: float
    radius: float


@attrs.frozen
class Sprig:
    """One of many small things: its place, and how large or bright it is, 0.0 to 1.0."""

    x: float
    y: float
    size: float


@attrs.frozen
class Cloud:
    """A cloud: its place, its length in units, and its bumps (place along it, radius in units)."""

    x: float
    y: float
    length: float
    bumps: tuple[tuple[float, float], ...]


@attrs.frozen(kw_only=True)
class Scene:
    """All that a painter needs to know, farthest first.

    Attributes:
        kind: The land's name; ``"pattern"`` is one that repeats without a seam.
        palette: The colours.
        disc: The sun or moon.
        horizon: Where sky and land meet; the shore, if there is water.
        water: Whether there is.
        stars, clouds, birds, boats: Few or none of each.
        aurora: Heights of a curtain of northern lights, 0.0 to 1.0; empty: none.
        tower: A lighthouse on its cape, which goes on to the nearer edge; `None`: none.
        ridges: Those behind the water.
        front: Those before it.
        seed: Of ripples and grain.
    """

    kind: str
    palette: Palette
    disc: Disc
    horizon: float
    water: bool = False
    stars: tuple[Sprig, ...] = ()
    clouds: tuple[Cloud, ...] = ()
    birds: tuple[Sprig, ...] = ()
    boats: tuple[Sprig, ...] = ()
    aurora: tuple[float, ...] = ()
    tower: Sprig | None = None
    ridges: tuple[Ridge, ...]
    front: tuple[Ridge, ...] = ()
    seed: str


def compose(request: ImageRequest) -> Scene:
    """Return the scene of a request.

    Prompt and negative prompt decide on land and colours (a few words, such as "sea" or
    "night", are taken by their meaning, all others by their hash), the seed on where things
    are, the subseed on details. The size decides on nothing but how often a pattern's hills come.
    """
    return _Composer.of(request).scene()


@attrs.frozen
class _Composer:
    """Three sources of chance: of the mood, of the places, of the details."""

    kind: str
    hour: str
    palette: Palette
    mood: random.Random
    places: random.Random
    details: random.Random
    aspect: float
    seed: str

    @classmethod
    def of(cls, request: ImageRequest) -> "_Composer":
        words = (request.prompt, request.negative_prompt)
        mood, places = dice("mood", *words), dice("places", *words, request.seed)
        details = dice("details", *words, request.seed, request.subseed)
        kind = _choose(mood, _fitting({k: land.words for k, land in _LANDS.items()}, *words))
        hours = _fitting(_HOURS, *words)
        hour, colors = _choose(mood, [(h, line) for h in hours for line in _PALETTES[h]])
        palette = _palette(colors)
        return cls(
            "pattern" if request.tiling else kind,
            hour,
            palette.turned(0.06 * (mood.random() - 0.5)),
            mood,
            places,
            details,
            request.width / Frame(request.width, request.height).unit,
            f"{details.random()}",
        )

    def scene(self) -> Scene:
        if self.kind == "pattern":
            return self._pattern()
        land = _LANDS[self.kind]
        horizon = self.places.uniform(0.50, 0.64)
        disc = self._disc(horizon)
        ridges = self._ridges(land, horizon)
        return Scene(
            kind=self.kind,
            palette=self.palette,
            disc=disc,
            horizon=horizon,
            water=land.water,
            stars=self._stars(),
            clouds=self._clouds(horizon),
            birds=self._birds(horizon),
            boats=self._boats(horizon),
            aurora=self._aurora(),
            tower=self._tower(horizon),
            ridges=ridges,
            front=self._front(),
            seed=self.seed,
        )

    # The sky --------------------------------------------------------------------------

    def _disc(self, horizon: float) -> Disc:
        night, places = self.hour == "night", self.places
        kind = _choose(self.mood, _DISCS[self.hour])
        large = 0.16 if kind in ("sun", "bars") else 0.05
        radius = 0.05 + large * places.random() ** 2
        aside = places.uniform(0.04, 0.32) * (1 if places.random() < 0.5 else -1)
        above = places.uniform(0.14, 0.42) if night else places.uniform(0.02, 0.34)
        return Disc(kind, 0.5 + aside, horizon - above, radius)

    def _stars(self) -> tuple[Sprig, ...]:
        chance = self.details
        count = 320 if self.palette.dark else 0
        return tuple(
            Sprig(chance.random(), chance.random() ** 1.4, chance.random()) for _ in range(count)
        )

    def _clouds(self, horizon: float) -> tuple[Cloud, ...]:
        chance, count = self.places, int(self.mood.random() * 7) - 1
        return tuple(
            _cloud(chance, horizon, self.details) for _ in range(count // (1 + self.palette.dark))
        )

    def _birds(self, horizon: float) -> tuple[Sprig, ...]:
        x, y = self.places.uniform(0.2, 0.8), self.places.uniform(0.35, 0.8) * horizon
        count = 0 if self.palette.dark else int(self.mood.random() * 12) - 4
        chance = self.details
        return tuple(
            Sprig(
                x + 0.12 * (chance.random() - 0.5),
                y + 0.08 * (chance.random() - 0.5),
                chance.random(),
            )
            for _ in range(count)
        )

    def _boats(self, horizon: float) -> tuple[Sprig, ...]:
        count = int(self.mood.random() * 4) if self.kind == "sea" else 0
        chance = self.places
        return tuple(
            Sprig(chance.uniform(0.1, 0.9), horizon + 0.2 * far**2 + 0.02, far)
            for far in sorted(chance.random() for _ in range(count))
        )

    def _tower(self, horizon: float) -> Sprig | None:
        x = self.places.uniform(0.12, 0.3)
        x = 1.0 - x if self.places.random() < 0.5 else x
        size = self.places.random()
        return Sprig(x, horizon, size) if self.kind == "cape" else None

    def _aurora(self) -> tuple[float, ...]:
        shown = self.hour == "night" and self.mood.random() < 0.5
        return tuple(self.places.random() for _ in range(7)) if shown else ()

    # The land ---------------------------------------------------------------------------

    def _ridges(self, land: Land, horizon: float) -> tuple[Ridge, ...]:
        count = land.ridges + int(self.places.random() * 2)
        return tuple(self._ridge(land, horizon, i, i / (count - 1)) for i in range(count))

    def _ridge(self, land: Land, horizon: float, index: int, near: float) -> Ridge:
        rugged = index < land.rugged
        bare = rugged and land.curve == "straight"
        far_color = mix(self.palette.low, self.palette.mid, 0.5)
        depth = near * 0.6 if land.water else near
        color = mix(far_color, self.palette.near, 0.12 + 0.88 * depth**1.15)
        haze = (0.35 if land.water else 0.55) * (1.0 - near) ** 0.8
        below = (1.0 - near) * -0.06 - 0.012 if land.water else (0.97 - horizon) * near**1.15
        swing = land.swing[0] + (land.swing[1] - land.swing[0]) * near
        return Ridge(
            base=horizon + below,
            swing=swing * self.places.uniform(0.75, 1.25),
            stride=land.stride * self.places.uniform(0.75, 1.25) * (1.0 + 0.4 * near),
            curve=land.curve if rugged else "smooth",
            octaves=land.octaves if rugged else 4,
            gain=land.gain if rugged else 0.42,
            lattice=self._lattice(bare),
            color=color,
            foot=mix(color, self.palette.low, haze),
            growth=0.0 if bare else land.trees[0] + (land.trees[1] - land.trees[0]) * near**2,
            seed=f"{self.details.random()}",
            lit=rugged,
        )

    def _lattice(self, pointed: bool = False) -> tuple[float, ...]:
        """Heights of the places, moved a little by the details; `pointed`: summit, valley, ..."""
        heights = (
            0.92 * self.places.random() + 0.08 * self.details.random() for _ in range(_LATTICE)
        )
        if not pointed:
            return tuple(heights)
        return tuple(0.5 * height + 0.5 * (i % 2) for i, height in enumerate(heights))

    def _front(self) -> tuple[Ridge, ...]:
        """Return a dark shore, to frame a lake."""
        if self.kind != "lake":
            return ()
        return (
            Ridge(
                base=1.02,
                swing=0.11,
                stride=0.55,
                curve="smooth",
                octaves=3,
                gain=0.4,
                lattice=self._lattice(),
                color=self.palette.near,
                foot=self.palette.near,
                growth=0.2,
                seed=f"{self.details.random()}",
            ),
        )

    # A pattern ----------------------------------------------------------------------------

    def _pattern(self) -> Scene:
        rows = 5 + int(self.places.random() * 4)
        return Scene(
            kind="pattern",
            palette=self.palette,
            disc=Disc("sun", 0.5, 0.5, 0.0),
            horizon=0.0,
            ridges=tuple(self._row(i / rows, 0.42 / rows) for i in range(rows)),
            seed=self.seed,
        )

    def _row(self, base: float, swing: float) -> Ridge:
        """Return a ridge that goes on at the left where it ends at the right; colours on a ring."""
        ring = (self.palette.low, self.palette.mid, self.palette.top, self.palette.mid)
        place = base * len(ring)
        color = mix(ring[int(place)], ring[(int(place) + 1) % len(ring)], place % 1.0)
        period = max(1, round(self.aspect * self.places.uniform(1.5, 3.5)))
        return Ridge(
            base=base,
            swing=swing,
            stride=self.aspect / period,
            curve="smooth",
            octaves=3,
            gain=0.4,
            lattice=self._lattice(),
            period=period,
            color=mix(color, self.palette.near, 0.25),
            foot=mix(color, self.palette.light, 0.35),
            growth=0.05,
            seed=f"{self.details.random()}",
        )


def _cloud(places: random.Random, horizon: float, details: random.Random) -> Cloud:
    length = places.uniform(0.10, 0.34)
    bumps = 6 + int(details.random() * 4)
    return Cloud(
        places.random(),
        horizon * places.uniform(0.12, 0.85),
        length,
        tuple(_bump((i + 0.5) / bumps, length, details.random()) for i in range(bumps)),
    )


def _bump(along: float, length: float, chance: float) -> tuple[float, float]:
    """Bumps are largest in the middle."""
    return along, length * (0.16 + 0.16 * chance) * math.sin(math.pi * along)


def _fitting(kinds: dict[str, str], prompt: str, negative: str) -> list[str]:
    """Return the kinds whose words the prompt has, or all; never those of the negative prompt."""
    wanted = _meant(kinds, prompt) or list(kinds)
    unwanted = _meant(kinds, negative)
    return [kind for kind in wanted if kind not in unwanted] or wanted


def _meant(kinds: dict[str, str], text: str) -> list[str]:
    words = set(re.findall(r"[a-z]+", text.lower()))
    return [kind for kind, named in kinds.items() if words & set(named.split())]
