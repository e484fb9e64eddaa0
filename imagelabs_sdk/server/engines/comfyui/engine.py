"""One job at a time on one ComfyUI server: ask, submit, follow, fetch."""

import io
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import attrs
from PIL import Image

from ....deadline import Deadline
from ....errors import APIConnectionError, APIResponseError
from ....provenance import without_metadata
from ..backend import Backend
from ..base import BackendLostError, RenderedImage, RenderError, RenderJob, RenderMonitor
from ..files import finished_file
from ..references import reference_bytes
from ..tuning import Limits, Tuning, ignored_fields, read_tuning
from .events import EventStream
from .jobs import ComfyUIJobs, Found, Standing
from .workflow import Workflow

__all__ = ["ComfyUIEngine"]

_POLL = 0.5  # seconds between two questions how a job stands, if no message comes
_RETRY = 1.0  # seconds before a server that does not answer is asked again
_MAX_SUBMITS = 3  # of one job by one worker: a server that keeps forgetting it is given up


@attrs.define
class ComfyUIEngine:
    """Renders on one ComfyUI server.

    Attributes:
        backend: The server.
        workflow: What it runs.
        limits: What a request may ask for.
        timeout: Seconds for one image, waiting in ComfyUI's own queue included.
        give_up_after: Seconds for which a server that does not answer is waited for.
        sleep: Waits a number of seconds.
        clock: A monotonic clock, in seconds.
    """

    backend: Backend
    workflow: Workflow
    limits: Limits
    timeout: float
    give_up_after: float
    sleep: Callable[[float], None] = time.sleep
    clock: Callable[[], float] = time.monotonic
    _jobs: ComfyUIJobs = attrs.field(init=False)
    _checked: bool = attrs.field(default=False, init=False)

    @_jobs.default
    def _no_jobs_yet(self) -> ComfyUIJobs:
        return ComfyUIJobs(self.backend)

    def render(
        self, batch: Sequence[RenderJob], monitor: RenderMonitor
    ) -> Sequence[RenderedImage | RenderError]:
        """Render each job; see `Engine.render`.

        Raises:
            BackendLostError: The server could not be reached for `give_up_after` seconds.
        """
        return [self._outcome(job, monitor) for job in batch]

    def close(self) -> None:
        """Close the connections. What was queued stays queued, and is asked for later."""
        self.backend.transport.close()

    def _outcome(self, job: RenderJob, monitor: RenderMonitor) -> RenderedImage | RenderError:
        run = _Run(self, job, monitor)
        try:
            return run.outcome()
        except RenderError as error:
            return error
        except APIResponseError as exc:
            return RenderError(f"the back end's answer cannot be used: {exc.message}")
        finally:
            run.events.close()

    def check_workflow(self) -> None:
        """Compare the workflow with the server's nodes, once.

        Raises:
            RenderError: The server cannot run it; says what is missing.
            APIConnectionError: The server does not answer.
        """
        if self._checked:
            return
        answer = self.backend.get("/object_info", Deadline.after(60.0))
        found = self.workflow.mismatches(answer.fields())
        if found:
            raise RenderError(f"the back end cannot run the workflow: {'; '.join(found[:5])}")
        self._checked = True


@attrs.define
class _Run:
    """One job on its way."""

    engine: ComfyUIEngine
    job: RenderJob
    monitor: RenderMonitor
    fraction: float = 0.0
    submits: int = 0
    failing_since: float | None = None
    events: EventStream = attrs.field(init=False)
    deadline: Deadline = attrs.field(init=False)
    started: float = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        self.events = EventStream(self.engine.backend.url, self.job.handle)
        self.deadline = Deadline.after(self.engine.timeout, self.engine.clock)
        self.started = self.engine.clock()

    def outcome(self) -> RenderedImage:
        """Follow the job to its image; ask before each submit, since an id may be queued twice."""
        jobs, handle = self.engine._jobs, self.job.handle
        while not self.deadline.passed:
            if self.monitor.is_cancelled(self.job.id):
                self._answered(partial(jobs.cancel, handle))
                raise RenderError("cancelled")
            found = self._answered(partial(jobs.find, handle))
            if found is None:
                continue
            if found.standing is Standing.DONE:
                image: RenderedImage | None = self._answered(partial(self._image, found))
                if image is not None:
                    return image
            elif found.standing is Standing.FAILED:
                raise RenderError(f"the back end failed: {found.reason}")
            elif found.standing is Standing.UNKNOWN:
                if self._answered(self._submit):
                    self._follow()
            else:
                self._follow()
        self._answered(partial(jobs.cancel, handle))
        raise RenderError(f"the back end did not finish within {self.engine.timeout:g} seconds")

    def _answered(self, ask: Callable[[], Any]) -> Any:
        """Return the answer, or `None` after a pause when none came.

        Raises:
            BackendLostError: None came for `give_up_after` seconds.
        """
        try:
            answer = ask()
        except APIConnectionError as exc:
            now = self.engine.clock()
            self.failing_since = now if self.failing_since is None else self.failing_since
            if now - self.failing_since >= self.engine.give_up_after:
                words = self.engine.backend.words(exc)
                raise BackendLostError(f"{self.engine.backend.url}: {words}") from exc
            self.engine.sleep(_RETRY)
            return None
        self.failing_since = None
        return answer

    def _submit(self) -> bool:
        """Queue the job. True: it is queued, for a caller to whom `None` means no answer."""
        self.submits += 1
        if self.submits > _MAX_SUBMITS:
            raise RenderError("the back end keeps forgetting the job")
        self.engine.check_workflow()
        if not self.events.is_open:
            self.events = EventStream(self.engine.backend.url, self.job.handle)
        self.engine._jobs.submit(self.job.handle, self.engine.workflow.filled(self._values()))
        return True

    def _values(self) -> dict[str, Any]:
        request = self.job.request
        tuning = read_tuning(request, self.engine.limits)
        values: dict[str, Any] = {
            "prompt": request.prompt,
            "negative_prompt": request.negative_prompt,
            "seed": request.seed,
            "subseed": request.subseed,
            "subseed_strength": tuning.subseed_strength,
            "width": request.width,
            "height": request.height,
            "steps": tuning.steps,
            "guidance": tuning.guidance,
        }
        if request.reference_image:
            values["image"] = self._upload(request.reference_image)
            values["strength"] = request.reference_strength / 100
        return {name: value for name, value in values.items() if value is not None}

    def _upload(self, uri: str) -> str:
        try:
            data = reference_bytes(uri)
        except ValueError as exc:
            raise RenderError(str(exc)) from exc
        kind = uri[5:].partition(";")[0].rpartition("/")[2].lower()
        return self.engine._jobs.upload(f"{self.job.handle}.{kind}", data, Deadline.after(60.0))

    def _follow(self) -> None:
        """Report what the messages say until it is time to ask again.

        The first report is a sign of life: in ComfyUI's queue a job may wait for long.
        """
        self._report(None, None)
        end = self.engine.clock() + _POLL
        if not self.events.is_open:
            self.engine.sleep(_POLL)
            return
        while self.events.is_open and (left := end - self.engine.clock()) > 0:
            event = self.events.next(left)
            if event is None:
                continue
            if event.ended:
                return
            self._report(event.fraction, event.preview)
            if self.monitor.is_cancelled(self.job.id):
                return

    def _report(self, fraction: float | None, preview: bytes | None) -> None:
        """Report the largest fraction so far: each node counts from 0 to 1 again."""
        self.fraction = max(self.fraction, fraction or 0.0)
        wanted = preview is not None and self.monitor.wants_preview(self.job.id)
        self.monitor.progress(self.job.id, self.fraction, preview if wanted else None)

    def _image(self, found: Found) -> RenderedImage:
        data = self.engine._jobs.image(found, self.engine.workflow.output, Deadline.after(120.0))
        try:
            file = without_metadata(finished_file(data))
        except ValueError as exc:
            raise RenderError(f"the back end's image cannot be used: {exc}") from exc
        return RenderedImage(file, self._info(file))

    def _info(self, file: bytes) -> dict[str, Any]:
        request, workflow = self.job.request, self.engine.workflow
        tuning = read_tuning(request, self.engine.limits)
        with Image.open(io.BytesIO(file)) as image:
            width, height = image.size
        takes = workflow.takes
        info: dict[str, Any] = {
            "engine": "comfyui",
            "model": _model(workflow),
            "steps": self._used("steps", tuning),
            "guidance": self._used("guidance", tuning),
            "seed": request.seed if "seed" in takes else None,
            "subseed": request.subseed if "subseed" in takes else None,
            "width": width,
            "height": height,
            "requested_width": request.width,
            "requested_height": request.height,
            "ignored": ignored_fields(request, takes),
            "seconds": round(self.engine.clock() - self.started, 3),
        }
        return info

    def _used(self, name: str, tuning: Tuning) -> Any:
        """Return the value of the request, else the one that stands in the workflow."""
        asked = getattr(tuning, name)
        for node, field in self.engine.workflow.places.get(name, ()):
            return self.engine.workflow.graph[node]["inputs"][field] if asked is None else asked
        return None


def _model(workflow: Workflow) -> str:
    """Return the first model's name that stands in the workflow."""
    for parts in workflow.graph.values():
        for field in ("ckpt_name", "unet_name"):
            if isinstance(parts["inputs"].get(field), str):
                return str(parts["inputs"][field])
    return ""
