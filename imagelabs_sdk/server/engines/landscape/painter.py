"""Paint a scene with Pillow, from the farthest to the nearest."""

import hashlib
import itertools
import math
from collections.abc import Iterable, Iterator, Sequence

import attrs
from PIL import Image, ImageChops, ImageDraw, ImageFilter

from . import shapes
from .scene import Cloud, Color, Disc, Frame, Outline, Ridge, Scene, Sprig, dice, mix

__all__ = ["paint"]

_SMALLEST = 2.0  # pixels; trees below are not worth the time
_PLAIN = 64.0  # pixels to a unit below which slopes and windows are not seen
_FINE = 2  # a stencil has so many points to a pixel each way, for smooth edges
_RADIUS = 181  # where a halo ends, in a gradient from 0 in the middle to 255 at the sides
_BLACK, _WHITE, _LAMPLIGHT, _AURORA = (0, 0, 0), (255, 255, 255), (255, 205, 120), (90, 255, 190)


def paint(scene: Scene, width: int, height: int) -> Image.Image:
    """Return the scene, painted at a size in pixels."""
    painter = _Painter(scene, Frame(width, height))
    painter.paint()
    return painter.grained()


class _Stencil:
    """A mask over a part of the image, drawn in the image's coordinates."""

    def __init__(self, left: float, top: float, right: float, bottom: float) -> None:
        self.corner = math.floor(left), math.floor(top)
        wide, high = math.ceil(right) - self.corner[0], math.ceil(bottom) - self.corner[1]
        self._mask = Image.new("L", (max(1, wide) * _FINE, max(1, high) * _FINE))
        self._draw = ImageDraw.Draw(self._mask)

    @classmethod
    def around(cls, x: float, y: float, reach: float) -> "_Stencil":
        return cls(x - reach - 1, y - reach - 1, x + reach + 2, y + reach + 2)

    def fill(self, outlines: Iterable[Outline], strength: float = 1.0) -> None:
        for outline in outlines:
            fine = [self._fine(*point) for point in outline]
            self._draw.polygon(fine, fill=round(255 * strength))

    def ellipse(self, x: float, y: float, across: float, down: float, strength: float = 1) -> None:
        box = (*self._fine(x - across, y - down), *self._fine(x + across, y + down))
        self._draw.ellipse(box, fill=round(255 * strength))

    def disc(self, x: float, y: float, radius: float, strength: float = 1.0) -> None:
        self.ellipse(x, y, radius, radius, strength)

    def mask(self) -> Image.Image:
        return self._mask.reduce(_FINE)

    def _fine(self, x: float, y: float) -> tuple[float, float]:
        return (x - self.corner[0]) * _FINE, (y - self.corner[1]) * _FINE


class _Painter:
    """Paints from the farthest to the nearest."""

    def __init__(self, scene: Scene, frame: Frame) -> None:
        self.scene, self.palette, self.frame = scene, scene.palette, frame
        self.width, self.height, self.unit = frame.width, frame.height, frame.unit
        self.image = Image.new("RGB", (frame.width, frame.height))
        self.shore = min(round(scene.horizon * frame.height), frame.height - 1)

    def paint(self) -> None:
        if self.scene.kind == "pattern":
            self._pattern()
            return
        self._sky()
        for ridge in self.scene.ridges:
            self._ridge(ridge)
        if self.scene.water:
            self._water()
        if self.scene.tower:
            self._cape(self.scene.tower)
        for ridge in self.scene.front:
            self._ridge(ridge)
        self._vignette()

    def grained(self) -> Image.Image:
        """Return the image with a fine grain, which also hides the steps of its gradients."""
        noise = hashlib.shake_256(self.scene.seed.encode()).digest(self.width * self.height)
        grain = Image.frombytes("L", self.image.size, noise)
        grain = grain.point([round((v - 127.5) / 42.5) + 3 for v in range(256)])
        return ImageChops.add(self.image, Image.merge("RGB", [grain] * 3), 1, -3)

    def _pattern(self) -> None:
        """Each ridge also as if one image further up and one further down."""
        for shift in (-1.0, 0.0, 1.0):
            for ridge in self.scene.ridges:
                self._ridge(attrs.evolve(ridge, base=ridge.base + shift))

    # Means ------------------------------------------------------------------------------

    def _stencil(self, top: float = 0.0) -> _Stencil:
        return _Stencil(0, top, self.width, self.height)

    def _stamp(self, stencil: _Stencil, color: Color | Image.Image) -> None:
        self.image.paste(color, stencil.corner, stencil.mask())

    def _halo(self, color: Color, x: float, y: float, radius: float, strength: float) -> None:
        fade = [strength * max(0.0, 1.0 - v / _RADIUS) ** 2.2 for v in range(256)]
        mask = Image.radial_gradient("L").point([round(255 * part) for part in fade])
        size = max(1, round(2 * radius))
        corner = round(x - size / 2), round(y - size / 2)
        self.image.paste(color, corner, mask.resize((size, size), Image.Resampling.BICUBIC))

    def _haze(self, color: Color, foot: Color, height: int) -> Image.Image:
        """`color` that goes over to `foot` in three tenths of the image's height."""
        deep = max(1, round(0.3 * self.height))
        image = Image.new("RGB", (self.width, height), foot)
        image.paste(_column([(0.0, color), (1.0, foot)], deep).resize((self.width, deep)))
        return image

    # The sky ----------------------------------------------------------------------------

    def _sky(self) -> None:
        palette, end = self.palette, self.scene.horizon + 0.08
        stops = [(0.0, palette.top), (end * 0.55, palette.mid), (end, palette.low)]
        self.image.paste(_column(stops, self.height).resize(self.image.size))
        self._stars()
        if self.scene.aurora:
            self._aurora()
        self._disc(self.scene.disc)
        for cloud in self.scene.clouds:
            self._cloud(cloud)
        self._birds()

    def _stars(self) -> None:
        stencil = self._stencil()
        for star in self.scene.stars:
            radius = (0.5 + 1.5 * star.size**6) * self.unit / 900
            strength = (0.25 + 0.75 * star.size) * (1.0 - star.y**2)
            stencil.disc(star.x * self.width, star.y * self.shore, radius, strength)
        if self.scene.stars:
            self._stamp(stencil, mix(self.palette.light, _WHITE, 0.5))

    def _aurora(self) -> None:
        """Drawn at a quarter of the size: it is blurred anyway."""
        across, down = max(1, self.width // 4), max(1, self.shore // 4)
        mask = Image.new("L", (across, down))
        draw = ImageDraw.Draw(mask)
        for x in range(across):
            foot, length, strength = _ray(self.scene.aurora, x / across)
            for step in range(5):
                top = foot - length * (1.0 - step / 5)
                light = round(strength * (0.25 + 0.17 * step))
                draw.line((x, down * top, x, down * foot), fill=light)
        mask = mask.filter(ImageFilter.GaussianBlur((self.unit * 0.003, self.unit * 0.012)))
        color = mix(self.palette.low, _AURORA, 0.55)
        self.image.paste(color, (0, 0), mask.resize((self.width, max(1, self.shore))))

    def _disc(self, disc: Disc) -> None:
        x, y, radius = disc.x * self.width, disc.y * self.height, disc.radius * self.unit
        if self.palette.glows:
            lit = x - 0.6 * radius if disc.kind == "crescent" else x
            air = mix(self.palette.low, self.palette.light, 0.6)
            self._halo(air, lit, y, self.unit * 0.95, 0.5)
            self._halo(self.palette.light, lit, y, radius * 3.4, 0.45)
        stencil = _Stencil.around(x, y, radius)
        stencil.disc(x, y, radius)
        if disc.kind == "crescent":
            stencil.disc(x + 0.45 * radius, y - 0.15 * radius, radius, 0.0)
        if disc.kind == "bars":
            stencil.fill(_bars(x, y, radius), 0.0)
        self._stamp(stencil, self.palette.light)
        if disc.kind == "moon":
            self._craters(x, y, radius)
        if disc.kind == "planet":
            self._ring(x, y, radius)

    def _craters(self, x: float, y: float, radius: float) -> None:
        stencil = _Stencil.around(x, y, radius)
        craters = ((-0.3, -0.25, 0.3), (0.3, 0.2, 0.22), (-0.2, 0.42, 0.15), (0.36, -0.4, 0.12))
        for dx, dy, size in craters:
            stencil.disc(x + dx * radius, y + dy * radius, size * radius, 0.28)
        self._stamp(stencil, mix(self.palette.mid, self.palette.light, 0.4))

    def _ring(self, x: float, y: float, radius: float) -> None:
        """Paint a tilted ring: before the planet below, behind it above."""
        stencil = _Stencil.around(x, y, 2.4 * radius)
        for size, strength in ((2.2, 0.75), (1.9, 0.0), (1.82, 0.55), (1.5, 0.0)):
            stencil.ellipse(x, y, size * radius, 0.3 * size * radius, strength)
        arc = ((math.cos(angle / 20), math.sin(angle / 20)) for angle in range(64))
        stencil.fill([[(x + radius * dx, y - radius * dy) for dx, dy in arc]], 0.0)
        tilted = stencil.mask().rotate(16, Image.Resampling.BICUBIC)
        color = mix(self.palette.light, self.palette.mid, 0.35)
        self.image.paste(color, stencil.corner, tilted)

    def _cloud(self, cloud: Cloud) -> None:
        """Bumps on a flat foot, fading towards it."""
        x, y, length = cloud.x * self.width, cloud.y * self.height, cloud.length * self.unit
        rise = 1.35 * self.unit * max(radius for _, radius in cloud.bumps)
        stencil = _Stencil(x - length, y - rise, x + length, y + 1)
        for end in range(-20, 21):
            stencil.disc(x + 0.045 * end * length, y - 0.12 * rise, 0.12 * rise)
        for along, radius in cloud.bumps:
            size = radius * self.unit
            stencil.disc(x + 0.8 * (2 * along - 1) * length, y - 0.35 * size, size)
        fade = Image.linear_gradient("L").point([round(190 - v * 0.6) for v in range(256)])
        mask = stencil.mask()
        mask = ImageChops.multiply(mask, fade.resize(mask.size))
        self.image.paste(mix(self.palette.low, self.palette.white, 0.6), stencil.corner, mask)

    def _birds(self) -> None:
        stencil = self._stencil()
        for bird in self.scene.birds:
            span = (0.006 + 0.008 * bird.size) * self.unit
            stencil.fill(shapes.bird(bird.x * self.width, bird.y * self.height, span), 0.8)
        if self.scene.birds:
            self._stamp(stencil, self.palette.near)

    # The land ----------------------------------------------------------------------------

    def _ridge(self, ridge: Ridge) -> None:
        crest = self.frame.crest(ridge)
        top = math.floor(min(y for _, y in crest) - 1.3 * ridge.growth * self.unit)
        if top >= self.height:
            return
        stencil = self._stencil(top)
        below = self.height + 2
        stencil.fill([[*crest, (self.width + 2, below), (-2, below)]])
        if ridge.growth * self.unit > _SMALLEST:
            self._growth(stencil, ridge, crest)
        self._stamp(stencil, self._haze(ridge.color, ridge.foot, self.height - top))
        if not ridge.lit or self.unit < _PLAIN:
            return
        if ridge.curve == "straight":
            self._slopes(ridge, top)
        if ridge.curve == "step" and self.palette.dark:
            self._windows(ridge)

    def _growth(self, stencil: _Stencil, ridge: Ridge, crest: Outline) -> None:
        """Trees or masts along the crest; beyond an edge they come in again at the other."""
        chance, tall, x = dice(ridge.seed), ridge.growth * self.unit, 0.0
        plant = shapes.spire if ridge.curve == "step" else shapes.conifer
        while x < self.width:
            size = (0.4 + 0.8 * chance.random() ** 1.5) * tall
            foot = crest[int(x) + 2][1] + 0.06 * size
            for turn in (-self.width, 0, self.width):
                stencil.fill(plant(x + turn, foot, size))
            gap = chance.random()
            x += tall * (0.18 + 0.5 * gap**2 if gap < 0.93 else 3.0 * chance.random())

    def _slopes(self, ridge: Ridge, top: int) -> None:
        """Paint the sides of its summits that lie in the shade, and snow upon them."""
        chance, light = dice(ridge.seed, "slopes"), self.scene.disc.x * self.width
        shade, snow = self._stencil(top), self._stencil(top)
        for x in self.frame.summits(ridge):
            shade.fill([shapes.shade(self.frame, ridge, x, light, chance)])
            snow.fill(shapes.snow(self.frame, ridge, x, side, chance) for side in (-1, 1))
        dark = mix(ridge.color, self.palette.near, 0.2)
        white = mix(ridge.color, self.palette.white, 0.7)
        self._stamp(shade, self._haze(dark, ridge.foot, self.height - top))
        self._stamp(snow, white)
        both = ImageChops.multiply(snow.mask(), shade.mask())
        self.image.paste(mix(white, dark, 0.55), snow.corner, both)

    def _windows(self, ridge: Ridge) -> None:
        stencil = self._stencil()
        for window, light in shapes.windows(self.frame, ridge, dice(ridge.seed, "windows")):
            stencil.fill([window], 0.35 + 0.6 * light)
        self._stamp(stencil, mix(self.palette.light, _LAMPLIGHT, 0.5))

    def _cape(self, tower: Sprig) -> None:
        """Paint a headland with a lighthouse."""
        size, chance = (0.22 + 0.12 * tower.size) * self.unit, dice(self.scene.seed, "cape")
        place = tower.x * self.width
        land, foot = shapes.headland(self.frame, place, self.shore, size, chance)
        house = shapes.lighthouse(*foot, size)
        if self.palette.dark:
            self._beams(*house.lamp, size)
        dark = mix(self.palette.near, self.palette.mid, 0.2)
        self._fill([land], mix(self.palette.near, self.palette.mid, 0.1))
        self._fill(house.walls, mix(self.palette.low, self.palette.white, 0.35))
        self._fill(house.bands, dark)
        self._fill(house.glass, self.palette.light)

    def _fill(self, outlines: list[Outline], color: Color) -> None:
        stencil = self._stencil()
        stencil.fill(outlines)
        self._stamp(stencil, color)

    def _beams(self, x: float, y: float, size: float) -> None:
        stencil = _Stencil.around(x, y, 3.5 * size)
        stencil.fill(shapes.beams(x, y, 3.5 * size))
        fade = Image.radial_gradient("L").point([max(0, 128 - v) for v in range(256)])
        mask = stencil.mask()
        mask = ImageChops.multiply(mask, fade.resize(mask.size))
        self.image.paste(self.palette.light, stencil.corner, mask)
        self._halo(self.palette.light, x, y, 0.6 * size, 0.7)

    # The water ---------------------------------------------------------------------------

    def _water(self) -> None:
        """Paint what is above, mirrored and blurred; deeper in colour where it is nearer."""
        depth, palette = self.height - self.shore, self.palette
        above = self.image.crop((0, max(0, self.shore - depth), self.width, max(1, self.shore)))
        mirror = above.transpose(Image.Transpose.FLIP_TOP_BOTTOM).resize((self.width, depth))
        water = mirror.filter(ImageFilter.BoxBlur((self.unit * 0.008, self.unit * 0.003)))
        deep = mix(palette.top, palette.near, 0.3)
        tint = _column([(0.0, palette.low), (0.25, palette.mid), (1.0, deep)], depth)
        fade = Image.linear_gradient("L").point([round(50 + v * 0.45) for v in range(256)])
        water.paste(tint.resize(water.size), (0, 0), fade.resize(water.size))
        self.image.paste(water, (0, self.shore))
        self._ripples()
        self._glitter()
        self._boats()

    def _ripples(self) -> None:
        chance, stencil = dice(self.scene.seed, "ripples"), self._stencil(self.shore)
        for _ in range(130):
            near, x = chance.random() ** 1.3, chance.random() * self.width
            long = (0.02 + 0.20 * near) * (0.3 + chance.random())
            self._ripple(stencil, x, near, long, 0.13 + 0.1 * near)
        self._stamp(stencil, self.palette.near)

    def _glitter(self) -> None:
        """Paint the sun's or moon's path over the water."""
        chance, stencil = dice(self.scene.seed, "glitter"), self._stencil(self.shore)
        for _ in range(150):
            near = chance.random() ** 1.6
            aside = (chance.random() + chance.random() - 1.0) * (0.04 + 0.2 * near) * self.unit
            long = (0.012 + 0.09 * near) * chance.random()
            x = self.scene.disc.x * self.width + aside
            self._ripple(stencil, x, near, long, 0.75 * (1.0 - 0.5 * near))
        self._stamp(stencil, self.palette.light)

    def _ripple(self, stencil: _Stencil, x: float, near: float, long: float, light: float) -> None:
        y = self.shore + near * (self.height - self.shore)
        thick = max(0.3, (0.001 + 0.004 * near) * self.unit)
        stencil.ellipse(x, y, max(2.5 * thick, long * self.unit), thick, light)

    def _boats(self) -> None:
        for boat in self.scene.boats:
            size = (0.025 + 0.07 * boat.size**2) * self.unit
            hull, sails = shapes.boat(boat.x * self.width, boat.y * self.height, size)
            self._fill([hull], self.palette.near)
            self._fill(sails, mix(self.palette.low, self.palette.white, 0.5))

    def _vignette(self) -> None:
        fade = [round(70 * max(0.0, (v - 90) / 165) ** 1.6) for v in range(256)]
        mask = Image.radial_gradient("L").point(fade).resize(self.image.size)
        self.image.paste(mix(self.palette.near, _BLACK, 0.3), (0, 0), mask)


def _column(stops: Sequence[tuple[float, Color]], height: int) -> Image.Image:
    """Return a gradient one pixel wide; after the last stop it goes on in its colour."""
    count = max(2, min(height, 256))
    column = Image.new("RGB", (1, count))
    column.putdata([_between(stops, y / (count - 1)) for y in range(count)])
    return column.resize((1, height), Image.Resampling.BICUBIC)


def _between(stops: Sequence[tuple[float, Color]], place: float) -> Color:
    for (start, one), (end, other) in itertools.pairwise(stops):
        if place <= end:
            return mix(one, other, (place - start) / (end - start))
    return stops[-1][1]


def _ray(phases: Sequence[float], along: float) -> tuple[float, float, float]:
    """Of the aurora's ray at `along`: its foot, its length (both of the sky), its brightness."""
    one, two, three, *others = phases
    wave = math.sin(6.3 * (along * (1 + one) + two)) + 0.4 * math.sin(6.3 * (along * 4 + three))
    flicker = sum(math.sin(23 * along * (i + 1) + 6.3 * p) for i, p in enumerate(others))
    return 0.62 + 0.13 * wave, 0.28 + 0.05 * flicker, 70 + 14 * flicker


def _bars(x: float, y: float, radius: float) -> Iterator[Outline]:
    """Gaps across the lower half of a sun, ever wider."""
    for i in range(5):
        top = y + radius * (0.05 + 0.2 * i)
        foot = top + radius * (0.02 + 0.025 * i)
        yield [(x - radius, top), (x + radius, top), (x + radius, foot), (x - radius, foot)]
