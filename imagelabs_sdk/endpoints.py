"""The service's two endpoints: encode, send, decode; and what may be sent again.

===========================================  ============================  ===================
What came back                               ``POST /txt2img``             ``POST /progress``
===========================================  ============================  ===================
refused, no such host, connect timeout       sent again                    asked again
429; 503 with a sane ``Retry-After``         sent again, as asked          asked again, as asked
other 5xx, 408, 425, a redirect              never; ``delivered="maybe"``  asked again
reset, read timeout, cut or unreadable body  never; SubmissionUnknown      asked again
a Cloudflare page                            never                         asked again once
400, 401, 403, 404, 422, other 4xx           never                         never
===========================================  ============================  ===================

`submit_retry_delay` decides the first column. The other is carried out by the job, poll by poll;
`is_permanent_poll_error` decides it.
"""

import logging
import random
import re
import time
from collections.abc import Callable, Iterable, Mapping
from typing import NoReturn

import attrs

from . import wire
from .deadline import Deadline
from .errors import (
    APIConnectionError,
    APIResponseError,
    APIStatusError,
    ChallengeError,
    ImageLabsError,
    RateLimitError,
    SubmissionUnknownError,
    without,
)
from .models import ImageRequest, Progress
from .transports.base import HttpRequest, HttpResponse, Transport

__all__ = ["Endpoints", "is_permanent_poll_error", "submit_retry_delay"]

log = logging.getLogger(__name__)

_MAX_ANSWER = 1024 * 1024  # bytes; the answers that were seen have a few hundred
_MAX_RETRY_AFTER = 300.0  # seconds; who asks for more is not obeyed but told to the caller
_FIRST_PAUSE, _LONGEST_PAUSE = 0.5, 8.0  # seconds between attempts to submit
_TRANSIENT = (408, 425, 429)  # the statuses below 500 that another try may cure
_PLAIN_WORDS = ("", "Done", "Processing")  # hide nothing; most answers have one of them
_CHALLENGE = re.compile(rb"<title>\s*just a moment", re.IGNORECASE)
_REMEDY = (
    "a Cloudflare check stands in front: give the client the cookies (cf_clearance) and the exact "
    "user-agent of a browser that passed it, or use a transport with a browser's TLS handshake"
)


@attrs.frozen(kw_only=True)
class Endpoints:
    """Speaks to one service through one transport.

    Attributes:
        base_url: Without a slash at the end.
        transport: Carries the requests.
        headers: Sent with every request.
        cookies: Sent with every request.
        request_timeout: Seconds for one exchange, its answer's body included.
        max_retries: How often a submit that surely was not accepted is sent again.
        sleep: Waits so many seconds between these attempts.
        log_prompts: Whether the log may show what is to be drawn.
    """

    base_url: str
    transport: Transport
    headers: Mapping[str, str] = attrs.field(factory=dict, repr=False)
    cookies: Mapping[str, str] = attrs.field(factory=dict, repr=False)
    request_timeout: float = 30.0
    max_retries: int = 2
    sleep: Callable[[float], None] = time.sleep
    log_prompts: bool = False

    def submit(self, request: ImageRequest, *, deadline: Deadline) -> str:
        """Ask for one image: ``POST /txt2img``. Answers the task id.

        Raises:
            SubmissionUnknownError: It may have been accepted; it was not sent again.
            APIStatusError, APIResponseError: It was refused.
            APIConnectionError: It surely never arrived (``delivered == "no"``).
        """
        body = wire.encode_image_request(request)
        hidden = (request.prompt, request.negative_prompt)
        shown = request.prompt if self.log_prompts else f"{len(request.prompt)} characters"
        attempt = 0
        while True:
            attempt += 1
            log.debug("submit, attempt %d: %s", attempt, shown)
            try:
                return self._submit_once(body, hidden, deadline)
            except ImageLabsError as error:
                pause = submit_retry_delay(error, attempt)
                if attempt > self.max_retries or pause is None or pause >= deadline.remaining():
                    _give_up(error)
                log.debug("not accepted, sending again in %.1f s: %s", pause, error)
            self.sleep(pause)

    def _submit_once(self, body: bytes, hidden: Iterable[str], deadline: Deadline) -> str:
        try:
            task_id = wire.decode_submission(self._post("/txt2img", body, deadline))
        except ImageLabsError as error:
            error.endpoint = "POST /txt2img"
            error.redact([*hidden, *self.cookies.values()])
            raise
        log.debug("task %s accepted", task_id)
        return task_id

    def progress(self, task_id: str, *, deadline: Deadline, hidden: Iterable[str] = ()) -> Progress:
        """Ask how a task stands: ``POST /progress``. Once; asking is harmless.

        `hidden` are texts, such as the prompt, that the answer may quote and nobody shall see.
        """
        try:
            answer = self._post("/progress", wire.encode_progress_query(task_id), deadline)
            progress = wire.decode_progress(answer)
        except ImageLabsError as error:
            error.endpoint, error.task_id = "POST /progress", task_id
            error.redact([*hidden, *self.cookies.values()])
            raise
        if progress.status not in _PLAIN_WORDS:
            status = without(progress.status, [*hidden, *self.cookies.values()])
            progress = attrs.evolve(progress, status=status)
        return progress

    def _post(self, path: str, body: bytes, deadline: Deadline) -> bytes:
        request = HttpRequest(
            method="POST",
            url=self.base_url + path,
            headers=self.headers,
            body=body,
            cookies=self.cookies,
        )
        within = deadline.within(self.request_timeout)
        with self.transport.send(request, deadline=within) as response:
            if not 200 <= response.status < 300:
                raise _status_error(response)
            answer = response.read(_MAX_ANSWER)
            if _is_challenge(response, answer):
                raise _challenge_error(response)
            return answer


def is_permanent_poll_error(error: ImageLabsError) -> bool:
    """Whether asking for this task again is hopeless."""
    if not isinstance(error, APIStatusError) or isinstance(error, ChallengeError):
        return False
    return 400 <= error.status_code < 500 and error.status_code not in _TRANSIENT


def submit_retry_delay(error: ImageLabsError, attempt: int) -> float | None:
    """Seconds until a submit may be sent again after its `attempt`-th failure; `None`: never."""
    if getattr(error, "delivered", "maybe") != "no" or isinstance(error, ChallengeError):
        return None
    asked: float | None = getattr(error, "retry_after", None)
    if asked is not None and asked > _MAX_RETRY_AFTER:
        return None
    pause = min(_FIRST_PAUSE * 2.0 ** (attempt - 1), _LONGEST_PAUSE)
    return max(pause * (0.75 + random.random() / 4), asked or 0.0)


def _give_up(error: ImageLabsError) -> NoReturn:
    """Tell the caller of a failed submit; one that is unclear has a name of its own."""
    if isinstance(error, APIConnectionError | APIResponseError) and error.delivered == "maybe":
        raise SubmissionUnknownError(
            f"the request may or may not have been accepted, so it was not sent again: "
            f"{error.message}",
            endpoint=error.endpoint,
        ) from error
    raise error


# Reading an error status --------------------------------------------------------------


def _status_error(response: HttpResponse) -> APIStatusError:
    body, status = _refusal(response), response.status
    asked = _retry_after(response.headers.get("retry-after", ""))
    if _is_challenge(response, body):
        return _challenge_error(response)
    kind = RateLimitError if status == 429 else APIStatusError
    words = wire.decode_error(body)
    message = f"the service answered {status}" + (f": {words}" if words else "")
    if 300 <= status < 400:
        message += "; redirects of the API are not followed, check base_url"
    sane = asked is not None and asked <= _MAX_RETRY_AFTER
    task_id = wire.find_task_id(body)  # then it was taken up, whatever the status says
    turned_away = (status == 429 or (status == 503 and sane)) and task_id is None
    judged = 400 <= status < 500 and status not in _TRANSIENT
    return kind(
        message,
        task_id=task_id,
        status_code=status,
        retry_after=asked,
        delivered="no" if turned_away else "yes" if judged else "maybe",
    )


def _is_challenge(response: HttpResponse, body: bytes) -> bool:
    """Return True for a Cloudflare check, which is also sent with status 200."""
    if "challenge" in response.headers.get("cf-mitigated", "").lower():
        return True
    is_page = body[:64].lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"<")
    return response.status in (200, 403, 503) and is_page and bool(_CHALLENGE.search(body))


def _challenge_error(response: HttpResponse) -> ChallengeError:
    asked = _retry_after(response.headers.get("retry-after", ""))
    return ChallengeError(_REMEDY, status_code=response.status, retry_after=asked, delivered="no")


def _refusal(response: HttpResponse) -> bytes:
    """The body of an error, as far as it can be had: the status alone says enough."""
    try:
        return response.read(_MAX_ANSWER)
    except ImageLabsError:
        return b""


def _retry_after(value: str) -> float | None:
    """Seconds, from seconds or an HTTP date; `None` when the header is absent or makes no sense."""
    value = value.strip()
    if re.fullmatch(r"[0-9]{1,12}(\.[0-9]{1,6})?", value):
        return float(value)
    from email.utils import parsedate_to_datetime  # heavy, and hardly ever needed

    try:
        return max(0.0, parsedate_to_datetime(value).timestamp() - time.time())
    except (ValueError, TypeError, OverflowError, IndexError):
        return None
