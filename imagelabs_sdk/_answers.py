"""What an answer that is no success means: its error, and what the caller can do."""

import re
import time

from . import wire
from ._redact import sanitize_text
from .errors import (
    APIConnectionError,
    APIResponseError,
    APIStatusError,
    AuthenticationError,
    ChallengeError,
    ImageLabsError,
    PermissionDeniedError,
    RateLimitError,
)
from .transports.base import HttpResponse

__all__ = ["describe_answer", "is_challenge", "remedy_for", "status_error", "with_body"]

MAX_RETRY_AFTER = 300.0  # seconds; a longer pause is left to the caller
TRANSIENT = (408, 425, 429)  # the statuses below 500 that another try may cure
_MAX_BODY = 2048  # characters of an answer that an error carries
_CHALLENGE = re.compile(rb"<title>\s*just a moment", re.IGNORECASE)
_REQUEST_IDS = ("x-request-id", "cf-ray")
_AFTER_CHALLENGE = (
    "give the client the cookies (cf_clearance) and the exact user-agent of a browser that passed "
    'it, or use a browser\'s TLS handshake: pip install "imagelabs_sdk[curl]", then '
    "ImageLabs(transport=CurlTransport()) from imagelabs_sdk.transports.curl_cffi"
)
_KINDS: dict[int, type[APIStatusError]] = {
    401: AuthenticationError,
    403: PermissionDeniedError,
    429: RateLimitError,
}
_CREDENTIALS = "check api_key, cookies and headers"
_UNKNOWN_TASK = "the service does not know this task, or not any more"
_REMEDIES = {  # by status: after a submit, after a poll
    401: (_CREDENTIALS, _CREDENTIALS),
    403: (_CREDENTIALS, _CREDENTIALS),
    404: ("check base_url", _UNKNOWN_TASK),
    405: ("check base_url", "check base_url"),
    410: ("check base_url", _UNKNOWN_TASK),
}


def status_error(response: HttpResponse, body: bytes) -> APIStatusError:
    """Return the error for an answer whose status, or whose page, is no success."""
    status, asked = response.status, _retry_after(response.headers.get("retry-after", ""))
    answered = describe_answer(response)
    if is_challenge(response, body):
        message = f"{answered} with a Cloudflare check"
        return ChallengeError(message, status_code=status, retry_after=asked, delivered="no")
    kind = _KINDS.get(status, APIStatusError)
    words = wire.decode_error(body)
    sane = asked is not None and asked <= MAX_RETRY_AFTER
    judged = 400 <= status < 500 and status not in TRANSIENT
    # An id says that the request was accepted, unless the status says that it was refused.
    task_id = None if judged else wire.find_task_id(body)
    refused = (status == 429 or (status == 503 and sane)) and task_id is None
    return kind(
        f"{answered}: {words}" if words else answered,
        task_id=task_id,
        status_code=status,
        retry_after=asked,
        delivered="no" if refused else "yes" if judged else "maybe",
    )


def describe_answer(response: HttpResponse) -> str:
    """Return status and content type, such as ``"answered 502 text/html"``."""
    kind = response.headers.get("content-type", "").partition(";")[0]
    return f"answered {response.status} {sanitize_text(kind, 60)}".rstrip()


def is_challenge(response: HttpResponse, body: bytes) -> bool:
    """Return True for a Cloudflare check, which is also sent with status 200."""
    if "challenge" in response.headers.get("cf-mitigated", "").lower():
        return True
    is_page = body[:64].lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"<")
    return response.status in (200, 403, 503) and is_page and bool(_CHALLENGE.search(body))


def with_body(error: ImageLabsError, response: HttpResponse, body: bytes) -> ImageLabsError:
    """Return the error with the answer's request id and first 2 KB."""
    error.body = sanitize_text(body[: 4 * _MAX_BODY].decode("utf-8", "replace"), _MAX_BODY)
    found = (response.headers.get(name) for name in _REQUEST_IDS)
    error.request_id = next((sanitize_text(value, 100) for value in found if value), None)
    return error


def remedy_for(error: ImageLabsError, *, is_submit: bool) -> str:
    """Return what the caller can do after a failed exchange."""
    if isinstance(error, APIStatusError) and (advice := _by_status(error, is_submit=is_submit)):
        return advice
    if not is_submit:
        return "the job may be healthy: poll again"
    if isinstance(error, APIResponseError) and error.delivered == "yes":
        return "change the request"
    if error.delivered == "no":
        network = isinstance(error, APIConnectionError)
        return (
            f"nothing was bought: {'check base_url and network, or ' if network else ''}try again"
        )
    return "sending it again may buy the image twice"


def _by_status(error: APIStatusError, *, is_submit: bool) -> str:
    if isinstance(error, ChallengeError):
        return _AFTER_CHALLENGE
    if isinstance(error, RateLimitError):
        pause = "a while" if error.retry_after is None else f"{error.retry_after:g} s"
        return f"wait {pause} before the next request"
    if 300 <= error.status_code < 400:
        return "redirects of the API are not followed: check base_url"
    after_submit, after_poll = _REMEDIES.get(error.status_code, ("", ""))
    judged = is_submit and error.delivered == "yes"
    return (after_submit if is_submit else after_poll) or ("change the request" if judged else "")


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
