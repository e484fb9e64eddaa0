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
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import NoReturn

import attrs

from . import wire
from ._redact import redact
from .deadline import Deadline
from .errors import (
    APIConnectionError,
    APIResponseError,
    APIStatusError,
    APITimeoutError,
    ChallengeError,
    ImageLabsError,
    InvalidRequestError,
    RateLimitError,
    SubmissionUnknownError,
)
from .models import ImageRequest, Progress
from .settings import Settings
from .transports.base import HttpRequest, HttpResponse, Transport

__all__ = ["Endpoints", "is_permanent_poll_error", "submit_retry_delay"]

log = logging.getLogger(__name__)

_MAX_ANSWER = 1024 * 1024  # bytes; the answers that were seen have a few hundred
_MAX_RETRY_AFTER = 300.0  # seconds; a longer pause is left to the caller
_FIRST_PAUSE, _LONGEST_PAUSE = 0.5, 8.0  # seconds between attempts to submit
_TRANSIENT = (408, 425, 429)  # the statuses below 500 that another try may cure
_PLAIN_WORDS = ("", "Done", "Processing")  # quote nothing; most answers have one of them
_CHALLENGE = re.compile(rb"<title>\s*just a moment", re.IGNORECASE)
_REMEDY = (
    "a Cloudflare check stands in front: give the client the cookies (cf_clearance) and the exact "
    "user-agent of a browser that passed it, or use a transport with a browser's TLS handshake"
)


@attrs.frozen
class Endpoints:
    """The two endpoints of one service, over one transport.

    Attributes:
        settings: The client's: URL, headers, cookies, time limits.
        transport: Sends the requests.
        sleep: Waits so many seconds between two attempts to submit.
    """

    settings: Settings
    transport: Transport
    sleep: Callable[[float], None] = time.sleep

    def submit(
        self, request: ImageRequest, *, deadline: Deadline, max_retries: int | None = None
    ) -> str:
        """Ask for one image with ``POST /txt2img`` and return the task id.

        Args:
            request: What to draw, with its seeds.
            deadline: Ends everything.
            max_retries: How often it is sent again if it surely was not accepted; `None`: as
                the settings say.

        Raises:
            SubmissionUnknownError: It may have been accepted; it was not sent again.
            APIStatusError, APIResponseError: It was refused.
            APIConnectionError: It surely never arrived (``delivered == "no"``).
        """
        retries = self.settings.max_retries if max_retries is None else max_retries
        body, secrets = wire.encode_image_request(request), self._secrets(request)
        shown = request.prompt if self.settings.log_prompts else f"{len(request.prompt)} characters"
        attempt = 0
        while True:
            attempt += 1
            log.debug("submit, attempt %d: %s", attempt, shown)
            try:
                with _described("POST /txt2img", secrets):
                    answer = self._post("/txt2img", body, deadline, _read_submission)
                    task_id = wire.decode_submission(answer)
            except ImageLabsError as error:
                pause = submit_retry_delay(error, attempt)
                if attempt > retries or pause is None or pause >= deadline.remaining():
                    _give_up(error)
                log.info("not accepted, sending again in %.1f s: %s", pause, error)
            else:
                log.debug("task %s accepted", task_id)
                return task_id
            self.sleep(pause)

    def progress(
        self, task_id: str, *, deadline: Deadline, request: ImageRequest | None = None
    ) -> Progress:
        """Ask once with ``POST /progress`` how a task stands; asking is harmless.

        Args:
            task_id: As the service gave it.
            deadline: Ends the exchange.
            request: What was asked for, so that nothing shows a prompt that the answer quotes;
                `None`: not known.
        """
        secrets = self._secrets(request)
        with _described("POST /progress", secrets, task_id):
            answer = self._post("/progress", wire.encode_progress_query(task_id), deadline, _read)
            progress = wire.decode_progress(answer, self.settings.base_url + "/progress")
        if progress.status not in _PLAIN_WORDS:
            progress = attrs.evolve(progress, status=redact(progress.status, secrets))
        if progress.refused:
            progress = attrs.evolve(progress, refused=redact(progress.refused, secrets))
        return progress

    def _secrets(self, request: ImageRequest | None) -> tuple[str, ...]:
        """Return what an answer may quote and nobody must see."""
        prompts = (request.prompt, request.negative_prompt) if request else ()
        return (*prompts, *self.settings.cookies.values())

    def _post(
        self,
        path: str,
        body: bytes,
        deadline: Deadline,
        read: Callable[[HttpResponse], bytes],
    ) -> bytes:
        settings = self.settings
        request = HttpRequest(
            method="POST",
            url=settings.base_url + path,
            headers=settings.headers,
            body=body,
            cookies=settings.cookies,
        )
        if deadline.passed:
            raise APITimeoutError("no time is left for the request", delivered="no")
        within = deadline.within(settings.request_timeout)
        with self.transport.send(request, deadline=within) as response:
            if not 200 <= response.status < 300:
                raise _status_error(response)
            answer = read(response)
            if _is_challenge(response, answer):
                raise _challenge_error(response)
            return answer


@contextmanager
def _described(endpoint: str, secrets: Iterable[str], task_id: str | None = None) -> Iterator[None]:
    """Complete the error of an exchange: where it happened, and without any secret."""
    try:
        yield
    except ImageLabsError as error:
        error.endpoint, error.task_id = endpoint, task_id or error.task_id
        error.delivered = error.delivered or "maybe"  # the transport may be the caller's own
        error.redact(secrets)
        raise


def is_permanent_poll_error(error: ImageLabsError) -> bool:
    """Return True for a 4xx status that another poll cannot cure."""
    if not isinstance(error, APIStatusError) or isinstance(error, ChallengeError):
        return False
    return 400 <= error.status_code < 500 and error.status_code not in _TRANSIENT


def submit_retry_delay(error: ImageLabsError, attempt: int) -> float | None:
    """Return the seconds until a submit may be sent again after its `attempt`-th failure.

    `None`: never, because it may have been accepted, a person has to pass a check, or the service
    asks for a longer pause than a call can wait.
    """
    if error.delivered != "no" or isinstance(error, ChallengeError | InvalidRequestError):
        return None
    asked = error.retry_after
    if asked is not None and asked > _MAX_RETRY_AFTER:
        return None
    pause = min(_FIRST_PAUSE * 2.0 ** (attempt - 1), _LONGEST_PAUSE)
    return max(pause * (0.75 + random.random() / 4), asked or 0.0)


def _give_up(error: ImageLabsError) -> NoReturn:
    """Raise the error of a failed submit; one that leaves its fate unknown has its own class."""
    if isinstance(error, APIConnectionError | APIResponseError) and error.delivered == "maybe":
        raise SubmissionUnknownError(
            f"the request may or may not have been accepted, so it was not sent again: "
            f"{error.message}",
            endpoint=error.endpoint,
        ) from error
    raise error


# Reading a body ------------------------------------------------------------------------


def _read(response: HttpResponse) -> bytes:
    return response.read(_MAX_ANSWER)


def _read_submission(response: HttpResponse) -> bytes:
    """Return the body; of one that breaks off the first part, if it holds a task id."""
    body = bytearray()
    try:
        for chunk in response.iter_bytes():
            body += chunk
            if len(body) > _MAX_ANSWER:
                raise APIResponseError(f"the answer is longer than {_MAX_ANSWER} bytes")
    except ImageLabsError:
        if wire.find_task_id(bytes(body)) is None:
            raise
    return bytes(body)


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
    judged = 400 <= status < 500 and status not in _TRANSIENT
    # An id says that the request was taken up, unless the status says that it was refused.
    task_id = None if judged else wire.find_task_id(body)
    turned_away = (status == 429 or (status == 503 and sane)) and task_id is None
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
    """Return the body of an error, or nothing if it breaks off: the status says enough."""
    try:
        return response.read(_MAX_ANSWER)
    except ImageLabsError:
        return b""


def _retry_after(value: str) -> float | None:
    """Return seconds, from seconds or an HTTP date; `None`: absent, or it makes no sense."""
    value = value.strip()
    if re.fullmatch(r"[0-9]{1,12}(\.[0-9]{1,6})?", value):
        return float(value)
    from email.utils import parsedate_to_datetime  # heavy, and hardly ever needed

    try:
        return max(0.0, parsedate_to_datetime(value).timestamp() - time.time())
    except (ValueError, TypeError, OverflowError, IndexError):
        return None
