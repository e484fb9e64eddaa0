"""One POST an image, sent once; what the answer holds is checked before it is kept."""

import base64
import binascii
import io
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import attrs
from PIL import Image

from ....deadline import Deadline
from ....errors import APIConnectionError, APIResponseError
from ....provenance import without_metadata
from ..backend import Answer, Backend
from ..base import RenderedImage, RenderError, RenderJob, RenderMonitor
from ..files import finished_file
from ..references import reference_bytes
from ..tuning import Limits, ignored_fields, read_tuning
from .dialects import Dialect

__all__ = ["OpenAIEngine"]

_RETRY_AFTER = 2.0  # seconds before a server that refused without work is asked again
_LONGEST_WAIT = 60.0  # seconds, whatever the server asks for
_SIGN_OF_LIFE = 30.0  # seconds between two reports while a POST blocks
_HOPELESS = ("insufficient_quota", "billing_hard_limit_reached", "billing_not_active")
"""Codes of a 429 that waiting does not cure."""


@attrs.frozen
class OpenAIEngine:
    """Renders at a server that speaks the OpenAI images API.

    Attributes:
        backend: The server.
        model: Its name there; empty: the server has one.
        dialect: Which kind of server it is.
        timeout: Seconds for one image, waiting in the server's own queue included.
        limits: What a request may ask for.
        sleep: Waits a number of seconds.
        clock: A monotonic clock, in seconds.
    """

    backend: Backend
    model: str
    dialect: Dialect
    timeout: float
    limits: Limits
    sleep: Callable[[float], None] = time.sleep
    clock: Callable[[], float] = time.monotonic

    def render(
        self, batch: Sequence[RenderJob], monitor: RenderMonitor
    ) -> Sequence[RenderedImage | RenderError]:
        """Render each job; see `Engine.render`. A job under way cannot be stopped."""
        return [self._outcome(job, monitor) for job in batch]

    def close(self) -> None:
        """Close the connections."""
        self.backend.transport.close()

    def _outcome(self, job: RenderJob, monitor: RenderMonitor) -> RenderedImage | RenderError:
        monitor.progress(job.id, 0.0)
        started = self.clock()
        try:
            answer = self._ask(job, monitor)
            data = _image_bytes(answer)
            return RenderedImage(data, self._info(job, data, answer, self.clock() - started))
        except RenderError as error:
            return error

    # Asking -------------------------------------------------------------------------------

    def _ask(self, job: RenderJob, monitor: RenderMonitor) -> Answer:
        """Send the request until it is taken up; once it may have been, never again."""
        deadline, wait, reason = (
            Deadline.after(self.timeout, self.clock),
            _RETRY_AFTER,
            "no time was left",
        )
        while not deadline.passed:
            if monitor.is_cancelled(job.id):
                raise RenderError("cancelled")
            with _signs_of_life(job, monitor):
                answer, reason = self._send_once(job, deadline)
            asked = None if answer is None else _no_work_done(answer)
            if answer is not None and asked is None:
                return answer
            self.sleep(min(asked or wait, _LONGEST_WAIT, deadline.remaining()))
            wait = min(2 * wait, _LONGEST_WAIT)
        raise RenderError(f"the back end could not take the job in time: {reason}")

    def _send_once(self, job: RenderJob, deadline: Deadline) -> tuple[Answer | None, str]:
        """Return a good answer, or one that says that no work was done with its reason.

        `None` instead of an answer: the request surely never left.

        Raises:
            RenderError: The job has failed, or may have been done.
        """
        private = (job.request.prompt, job.request.negative_prompt)
        try:
            answer = self._post(job, deadline)
        except APIConnectionError as exc:
            reason = self.backend.words(exc, private)
            if exc.delivered == "no":
                return None, reason
            raise RenderError(
                "the connection to the back end broke while it rendered, so the image may have "
                f"been made: {reason}"
            ) from exc
        except APIResponseError as exc:
            raise RenderError(f"the back end's answer cannot be used: {exc.message}") from exc
        reason = f"status {answer.status}: {self.backend.words(_reason(answer), private)}"
        if answer.status == 200 or _no_work_done(answer) is not None:
            return answer, reason
        if 400 <= answer.status < 500:
            raise RenderError(f"the back end refused the request, {reason}")
        raise RenderError(f"the back end failed, so the image may have been made, {reason}")

    def _post(self, job: RenderJob, deadline: Deadline) -> Answer:
        request = job.request
        fields = self.dialect.fields(request, read_tuning(request, self.limits), self.model)
        if not request.reference_image:
            return self.backend.post("/images/generations", fields, deadline)
        try:
            data = reference_bytes(request.reference_image)
        except ValueError as exc:
            raise RenderError(str(exc)) from exc
        kind = request.reference_image[5:].partition(";")[0].rpartition("/")[2].lower()
        return self.backend.post_form(
            "/images/edits", fields, ("image", f"reference.{kind}", data), deadline
        )

    # What is said about the image ----------------------------------------------------------

    def _info(self, job: RenderJob, data: bytes, answer: Answer, took: float) -> dict[str, Any]:
        request, takes = job.request, self.dialect.takes
        tuning = read_tuning(request, self.limits)
        with Image.open(io.BytesIO(data)) as image:
            width, height = image.size
        info: dict[str, Any] = {
            "engine": "openai",
            "model": self.model,
            "steps": tuning.steps if "steps" in takes else None,
            "guidance": tuning.guidance if "guidance" in takes else None,
            "seed": request.seed if "seed" in takes else None,
            "subseed": None,
            "width": width,
            "height": height,
            "requested_width": request.width,
            "requested_height": request.height,
            "ignored": ignored_fields(request, takes),
            "seconds": round(took, 3),
        }
        usage = answer.fields().get("usage")
        if isinstance(usage, dict):
            info["usage"] = {k: v for k, v in usage.items() if isinstance(v, int | float)}
        return info


@contextmanager
def _signs_of_life(job: RenderJob, monitor: RenderMonitor) -> Iterator[None]:
    """Report the job from time to time while its POST blocks: silence would mean that it hangs."""
    done = threading.Event()

    def report() -> None:
        while not done.wait(_SIGN_OF_LIFE):
            monitor.progress(job.id, 0.0)

    thread = threading.Thread(target=report, name="imagelabs-sign-of-life", daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


# Reading an answer -----------------------------------------------------------------------


def _no_work_done(answer: Answer) -> float | None:
    """Return seconds to wait if the answer says that nothing was rendered, else `None`."""
    if answer.status == 429 and _code(answer) not in _HOPELESS:
        return answer.retry_after or _RETRY_AFTER
    if answer.status == 503 and answer.retry_after is not None:
        return max(answer.retry_after, _RETRY_AFTER)
    return None


def _error(answer: Answer) -> Any:
    return answer.fields().get("error")


def _code(answer: Answer) -> object:
    error = _error(answer)
    return error.get("code") or error.get("type") if isinstance(error, dict) else None


def _reason(answer: Answer) -> object:
    """Return the back end's own words: an object, a text, or FastAPI's ``detail``."""
    error, fields = _error(answer), answer.fields()
    if isinstance(error, dict):
        return error.get("message") or "no reason given"
    return fields.get("message") or error or fields.get("detail") or "no reason given"


def _image_bytes(answer: Answer) -> bytes:
    """Return the image in the answer as a whole PNG, JPEG or WebP file.

    Raises:
        RenderError: There is none. An address is not followed: it may lead anywhere.
    """
    data = answer.fields().get("data")
    item = data[0] if isinstance(data, list) and data and isinstance(data[0], dict) else {}
    text = item.get("b64_json")
    if not isinstance(text, str) or not text:
        if item.get("url"):
            raise RenderError(
                "the back end answered with an address instead of the image, and addresses are "
                "not followed: set it up to answer b64_json"
            )
        raise RenderError("the back end's answer holds no image")
    try:
        return without_metadata(
            finished_file(base64.b64decode(text.rpartition(",")[2], validate=True))
        )
    except (binascii.Error, ValueError) as exc:
        raise RenderError(f"the back end's answer holds no whole image: {exc}") from exc
