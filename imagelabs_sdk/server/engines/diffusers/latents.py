"""Latents: the noise they start from, a quick look at them, and images that wrap around."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from PIL import Image

__all__ = ["LatentPreview", "initial_noise", "slerp", "wrapping"]

_CELLS = 8  # flat cells on each side of the latents that a preview is fitted with
_CELL = 4  # latent pixels on each side of one
_ENLARGE = 4  # a preview has so many pixels to a latent one, each way


def initial_noise(shape: tuple[int, ...], seed: int, subseed: int, strength: float) -> torch.Tensor:
    """Return the noise of `seed`, moved towards that of `subseed` by `strength`, 0.0 to 1.0."""
    noise = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    if strength == 0.0:
        return noise
    other = torch.randn(shape, generator=torch.Generator().manual_seed(subseed))
    return slerp(noise, other, strength)


def slerp(one: torch.Tensor, other: torch.Tensor, share: float) -> torch.Tensor:
    """Interpolate on the sphere: a mean of two noises would have too little variance."""
    cosine = torch.clamp((one * other).sum() / (one.norm() * other.norm()), -1.0, 1.0)
    angle = torch.arccos(cosine)
    if angle.sin().abs() < 1e-6:
        return one + share * (other - one)
    weights = torch.sin((1.0 - share) * angle), torch.sin(share * angle)
    return (weights[0] * one + weights[1] * other) / angle.sin()


@contextmanager
def wrapping(models: list[Any]) -> Iterator[None]:
    """Let every convolution wrap around the edges while the block lasts."""
    layers = [
        layer for model in models for layer in model.modules() if isinstance(layer, torch.nn.Conv2d)
    ]
    before = [layer.padding_mode for layer in layers]
    for layer in layers:
        layer.padding_mode = "circular"
    try:
        yield
    finally:
        for layer, mode in zip(layers, before, strict=True):
            layer.padding_mode = mode


class LatentPreview:
    """A linear map from latents to colours, fitted to a model's own decoder.

    It is fitted once, by decoding flat cells of random latents. It costs a matrix product a step
    where decoding would cost more than a step.
    """

    def __init__(self, vae: Any) -> None:
        """Fit the map; decodes one small image.

        Args:
            vae: The decoder; its latents have channels, height and width.
        """
        config = vae.config
        scale = getattr(config, "scaling_factor", None) or 1.0
        shift = getattr(config, "shift_factor", None) or 0.0
        channels = config.latent_channels
        generator = torch.Generator().manual_seed(0)
        cells = torch.randn(1, channels, _CELLS, _CELLS, generator=generator)
        latents = cells.repeat_interleave(_CELL, 2).repeat_interleave(_CELL, 3)
        with torch.no_grad():
            parameter = next(vae.parameters())
            given = (latents / scale + shift).to(parameter.device, parameter.dtype)
            decoded = vae.decode(given).sample.float().cpu()
        colours = torch.nn.functional.adaptive_avg_pool2d(decoded, (_CELLS, _CELLS))
        known = torch.cat([cells[0].flatten(1), torch.ones(1, _CELLS * _CELLS)]).T
        self._map = torch.linalg.lstsq(known, torch.nan_to_num(colours[0]).flatten(1).T).solution

    def image(self, latents: torch.Tensor) -> Image.Image:
        """Return what the latents of one image show, coarsely."""
        channels, height, width = latents.shape
        flat = latents.float().cpu().reshape(channels, -1).T
        colours = flat @ self._map[:-1] + self._map[-1]
        levels = ((colours / 2 + 0.5).clamp(0, 1) * 255).round().to(torch.uint8)
        pixels = levels.reshape(height, width, 3).numpy()
        small = Image.fromarray(pixels)
        return small.resize((width * _ENLARGE, height * _ENLARGE), Image.Resampling.BILINEAR)
