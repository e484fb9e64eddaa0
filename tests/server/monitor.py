"""A worker's monitor that keeps what an engine reports."""

from collections.abc import Callable
from typing import Any
from uuid import UUID

import attrs

from imagelabs_sdk import ImageRequest
from imagelabs_sdk.server.engines.base import RenderJob


@attrs.define
class Recorder:
    """Keeps the fractions and previews; `cancelled` and `watched` name jobs."""

    fractions: dict[str, list[float]] = attrs.Factory(dict)
    previews: dict[str, list[Any]] = attrs.Factory(dict)
    cancelled: set[str] = attrs.Factory(set)
    watched: set[str] = attrs.Factory(set)
    on_progress: Callable[[str], object] = lambda _: None

    def progress(self, job_id: str, fraction: float, preview: Any = None) -> None:
        self.fractions.setdefault(job_id, []).append(fraction)
        if preview is not None:
            self.previews.setdefault(job_id, []).append(preview)
        self.on_progress(job_id)

    def wants_preview(self, job_id: str) -> bool:
        return job_id in self.watched

    def is_cancelled(self, job_id: str) -> bool:
        return job_id in self.cancelled


def job(
    prompt: str = "a lighthouse", *, number: int = 1, attempt: int = 1, **more: Any
) -> RenderJob:
    """Job number `number`, small and with both seeds set."""
    fields = {"width": 64, "height": 64, "seed": 7, "subseed": 8, **more}
    handle = str(UUID(int=number))
    return RenderJob(f"task-{number}", ImageRequest(prompt, **fields), handle, attempt)
