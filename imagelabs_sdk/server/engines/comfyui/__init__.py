"""ComfyUI servers, as an engine."""

from .config import ComfyUIConfig
from .workflow import Workflow

__all__ = ["ComfyUIConfig", "Workflow"]
