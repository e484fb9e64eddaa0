"""ComfyUI's HTTP API for one job: ask how it stands, submit, cancel, fetch."""

import enum
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote, urlencode

import attrs

from ....deadline import Deadline
from ..backend import Answer, Backend
from ..base import RenderError

__all__ = ["ComfyUIJobs", "Found", "Standing"]

_REQUEST = 30.0  # seconds for one request that renders nothing


class Standing(enum.Enum):
    """How a job stands at ComfyUI."""

    UNKNOWN = "unknown"
    QUEUED = "queued"
    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"


@attrs.frozen
class Found:
    """What ComfyUI says of a job.

    Attributes:
        standing: Our reading.
        outputs: Of a finished job, by node.
        reason: Of a failed job, in ComfyUI's words.
    """

    standing: Standing
    outputs: Mapping[str, Any] = attrs.field(factory=dict)
    reason: str = ""


_STANDINGS = {
    "pending": Standing.QUEUED,
    "in_progress": Standing.RUNNING,
    "completed": Standing.DONE,
}


_QUEUES = {"queue_running": Standing.RUNNING, "queue_pending": Standing.QUEUED}


@attrs.define
class ComfyUIJobs:
    """The jobs of one server. Raises `APIConnectionError` where no answer comes.

    Attributes:
        backend: The server.
        has_jobs_api: Whether it has ``/api/jobs``, which came with ComfyUI 0.4; found out by
            asking.
    """

    backend: Backend
    has_jobs_api: bool = True

    def find(self, handle: str) -> Found:
        """Ask how a job stands. Raises `RenderError` when the answer is none."""
        if self.has_jobs_api:
            answer = self.backend.get(f"/api/jobs/{handle}", _soon())
            if answer.status == 200:
                return self._from_job(answer.fields())
            if answer.status == 404 and answer.fields():
                return Found(Standing.UNKNOWN)
            if answer.status not in (404, 405):
                raise RenderError(f"the back end answered {answer.status} when asked for the job")
            self.has_jobs_api = False
        return self._from_history(handle)

    def submit(self, handle: str, graph: Mapping[str, Any]) -> None:
        """Queue a graph under `handle`. The same handle sent twice is queued twice.

        Raises:
            RenderError: It was refused, with the words of ComfyUI, or ComfyUI is too old to take
                a handle; then what it queued is taken back.
        """
        fields = {"prompt": graph, "client_id": handle, "prompt_id": handle}
        answer = self.backend.post("/prompt", fields, _soon())
        if answer.status != 200:
            raise RenderError(f"the back end refused the workflow: {self._refusal(answer)}")
        given = answer.fields().get("prompt_id")
        if given != handle:
            self.cancel(str(given))
            raise RenderError("this ComfyUI is too old: it does not take a prompt_id")

    def cancel(self, handle: str) -> None:
        """Stop a job, wherever it stands; another job is never hit."""
        path = f"/api/jobs/{quote(handle)}/cancel"
        if self.has_jobs_api and self.backend.post(path, {}, _soon()).status == 200:
            return
        self.backend.post("/queue", {"delete": [handle]}, _soon())
        if handle in self._queue()["queue_running"]:
            self.backend.post("/interrupt", {"prompt_id": handle}, _soon())

    def image(self, found: Found, node: str, deadline: Deadline) -> bytes:
        """Fetch the first image of a node's output. It is not deleted: an equal graph needs it.

        Raises:
            RenderError: There is none.
        """
        images = found.outputs.get(node, {}).get("images")
        item = images[0] if isinstance(images, list) and images else None
        if not isinstance(item, dict) or not item.get("filename"):
            raise RenderError(f"the workflow ended without an image at node {node}")
        names = {name: str(item.get(name, "")) for name in ("filename", "subfolder", "type")}
        answer = self.backend.get(f"/view?{urlencode(names)}", deadline)
        if answer.status != 200:
            raise RenderError(f"the back end answered {answer.status} when asked for the image")
        return answer.body

    def upload(self, name: str, data: bytes, deadline: Deadline) -> str:
        """Upload an input image; return the name that a node wants."""
        fields = {"overwrite": "true", "subfolder": "imagelabs", "type": "input"}
        answer = self.backend.post_form("/upload/image", fields, ("image", name, data), deadline)
        stored = answer.fields().get("name")
        if answer.status != 200 or not isinstance(stored, str):
            raise RenderError(f"the back end did not take the reference image: {answer.status}")
        folder = answer.fields().get("subfolder") or ""
        return f"{folder}/{stored}" if folder else stored

    # Reading ------------------------------------------------------------------------------

    def _from_job(self, job: Mapping[str, Any]) -> Found:
        standing = _STANDINGS.get(str(job.get("status")), Standing.FAILED)
        status = job.get("execution_status")
        return Found(standing, _object(job.get("outputs")), self._failure(_object(status)))

    def _from_history(self, handle: str) -> Found:
        """Ask the queue first: a job that has left it by then is in the history."""
        queue = self._queue()
        for name, standing in _QUEUES.items():
            if handle in queue[name]:
                return Found(standing)
        entry = self.backend.get(f"/history/{handle}", _soon()).fields().get(handle)
        if not isinstance(entry, dict):
            return Found(Standing.UNKNOWN)
        status = _object(entry.get("status"))
        failed = status.get("status_str") == "error"
        standing = Standing.FAILED if failed else Standing.DONE
        return Found(standing, _object(entry.get("outputs")), self._failure(status))

    def _queue(self) -> dict[str, list[str]]:
        """Return the ids in the queue, as of one moment, by the names of `_QUEUES`."""
        answer = self.backend.get("/queue", _soon()).fields()
        found = {}
        for name in _QUEUES:
            items = answer.get(name)
            items = items if isinstance(items, list) else []
            found[name] = [item[1] for item in items if isinstance(item, list) and len(item) > 1]
        return found

    def _failure(self, status: Mapping[str, Any]) -> str:
        """Read why it failed from the messages of the execution."""
        for message in status.get("messages") or ():
            name, data = message[0], _object(message[1])
            if name == "execution_interrupted":
                return "it was interrupted there"
            if name == "execution_error":
                words = f"{data.get('node_type')}: {data.get('exception_message')}"
                return self.backend.words(words)
        return "no reason given"

    def _refusal(self, answer: Answer) -> str:
        """Read what is wrong from ``node_errors``, else from ``error``."""
        fields = answer.fields()
        found = [
            f"node {node} ({_object(errors).get('class_type')}): {_words(error)}"
            for node, errors in _object(fields.get("node_errors")).items()
            for error in _object(errors).get("errors") or ()
        ]
        return self.backend.words("; ".join(found) or _words(fields.get("error")))


def _soon() -> Deadline:
    return Deadline.after(_REQUEST)


def _object(value: object) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _words(error: object) -> str:
    if not isinstance(error, dict):
        return str(error or "no reason given")
    parts = [str(error.get(name)) for name in ("message", "details") if error.get(name)]
    return ", ".join(parts) or "no reason given"
