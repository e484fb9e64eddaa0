"""A stand-in for a model: layered landscapes, painted with Pillow from the request alone.

No diffusion model is at work, and a prompt is hardly understood: a few words, such as "sea" or
"night", choose the scenery, all others count by their hash alone. The same request always gives
the same bytes, in every process (of one version of Pillow).
"""

from .engine import LandscapeEngine

__all__ = ["LandscapeEngine"]
