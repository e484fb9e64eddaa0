"""Text-to-image models in this process family, by Hugging Face's diffusers."""

from .config import DiffusersConfig

__all__ = ["DiffusersConfig"]
