"""Servers that speak the OpenAI images API, as an engine."""

from .config import OpenAIConfig

__all__ = ["OpenAIConfig"]
