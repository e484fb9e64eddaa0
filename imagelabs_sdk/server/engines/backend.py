"""HTTP towards the back end of an engine, in JSON and in forms; each request is sent once."""

import json
import re
from collections.abc import Iterable, Mapping
from typing import Any

import attrs
from urllib3.filepost import encode_multipart_formdata

from ..._redact import redact, sanitize_text
from ...deadline import Deadline
from ...errors import ImageLabsError
from ...transports.base import HttpRequest, Transport
from ...validation import base_url

__all__ = ["MAX_ANSWER", "Answer", "Backend"]

MAX_ANSWER = 128 * 1024 * 1024
"""No longer answer is read, in bytes: a 4096 x 4096 PNG in base64 is at most 90 MiB."""

_NUMBER = re.compile(r"\d{1,6}(\.\d{1,6})?", re.ASCII)


@attrs.frozen
class Answer:
    """What a back end answered.

    Attributes:
        status: The HTTP status.
        body: The whole body.
        retry_after: Seconds that it asks us to wait, or `None`.
    """

    status: int
    body: bytes = attrs.field(repr=False)
    retry_after: float | None = None

    def json(self) -> Any:
        """Return the body as JSON; `None` when it is none."""
        try:
            return json.loads(self.body)
        except (ValueError, RecursionError):
            return None

    def fields(self) -> dict[str, Any]:
        """Return the body as a JSON object; empty when it is none."""
        answer = self.json()
        return answer if isinstance(answer, dict) else {}


@attrs.frozen
class Backend:
    """One server that renders for us.

    Attributes:
        url: Its address, without a slash at the end.
        transport: Carries the requests. Redirects are not followed.
        api_key: Sent as a bearer token; empty: none. Never in an error.
    """

    url: str = attrs.field(converter=base_url)
    transport: Transport = attrs.field(repr=False)
    api_key: str = attrs.field(default="", repr=False)

    def get(self, path: str, deadline: Deadline) -> Answer:
        """Send a GET.

        Raises:
            APIConnectionError: No answer came; ``delivered`` says whether the request left.
            APIResponseError: The answer is too long.
        """
        return self._send("GET", path, {}, b"", deadline)

    def post(self, path: str, fields: Mapping[str, Any], deadline: Deadline) -> Answer:
        """Send a POST with a JSON object. Raises as `get` does."""
        body = json.dumps(fields).encode()
        return self._send("POST", path, {"content-type": "application/json"}, body, deadline)

    def post_form(
        self, path: str, fields: Mapping[str, Any], file: tuple[str, str, bytes], deadline: Deadline
    ) -> Answer:
        """Send a POST with a form of text fields and one file (field, name, content)."""
        field, name, content = file
        parts = {key: str(value) for key, value in fields.items()}
        body, kind = encode_multipart_formdata({**parts, field: (name, content)})
        return self._send("POST", path, {"content-type": kind}, body, deadline)

    def words(self, text: object, private: Iterable[str] = ()) -> str:
        """Return text of the back end or of an error: cut, printable, without key and `private`."""
        if isinstance(text, ImageLabsError):
            text = text.message
        return redact(
            sanitize_text(text), [secret for secret in (self.api_key, *private) if secret]
        )

    def _send(
        self, method: str, path: str, headers: Mapping[str, str], body: bytes, deadline: Deadline
    ) -> Answer:
        own = {"accept": "application/json", **headers}
        if self.api_key:
            own["authorization"] = f"Bearer {self.api_key}"
        request = HttpRequest(method=method, url=self.url + path, headers=own, body=body)
        with self.transport.send(request, deadline=deadline) as response:
            wait = response.headers.get("retry-after", "")
            return Answer(
                response.status,
                response.read(MAX_ANSWER),
                float(wait) if _NUMBER.fullmatch(wait) else None,
            )
