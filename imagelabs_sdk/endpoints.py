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

Where the service has announced idempotency keys, a submit carries one, and every "never" that is
about its unknown fate is a "sent again": the same key is answered with the same task. No submit is
sent again more often than `max_retries` says.

`submit_retry_delay` decides the ``POST /txt2img`` column;
`is_permanent_poll_error` and `Job._after_failure` decide the ``POST /progress`` one.
"""

import logging
import random
import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Generic, NoReturn, TypeAlias, TypeVar

import attrs

from . import wire
from ._answers import (
    MAX_RETRY_AFTER,
    TRANSIENT,
    describe_answer,
    is_challenge,
    remedy_for,
    status_error,
    with_body,
)
from ._redact import Secrets, redact, redact_json, sanitize_text
from .deadline import Deadline
from .errors import (
    APIConnectionError,
    APIResponseError,
    APIStatusError,
    APITimeoutError,
    ChallengeError,
    ImageLabsError,
    InvalidRequestError,
    JobStoppedError,
    NotSupportedError,
    SubmissionUnknownError,
)
from .extensions import Features, LongPoll, known_features, new_key, remember_features
from .models import ImageRequest, Progress
from .settings import Settings
from .transports.base import HttpRequest, HttpResponse, Transport

__all__ = ["Endpoints", "is_permanent_poll_error", "job_log", "submit_retry_delay"]

log = logging.getLogger(__name__)
job_log = logging.getLogger("imagelabs_sdk.job")  # a line when a job is accepted, one at its end

_T = TypeVar("_T")

_MAX_ANSWER = 1024 * 1024  # bytes; the answers that were seen have a few hundred
_Body: TypeAlias = tuple[bytes, ImageLabsError | None]  # with why it has broken off, if it has
_FIRST_PAUSE, _LONGEST_PAUSE = 0.5, 8.0  # seconds between attempts to submit
_JUDGEMENTS = (400, 413, 415, 422)  # the statuses that are about the request alone
_CONFLICT = 409  # how a service says that a job cannot be cancelled any more
_PLAIN_WORDS = ("", "Done", "Processing")  # quote nothing; most answers have one of them
_FIELDS = {"status", "progress", "current_image_url", "final_image_url"}  # and no other field


@attrs.frozen
class _Call(Generic[_T]):
    """One request to an endpoint, which may be sent several times.

    Attributes:
        request: What is sent.
        read: Reads the body of the answer.
        is_enough: Returns True for a body that can be decoded although it has broken off.
        decode: Makes the result of it.
        secrets: What an answer may quote and nobody must see.
        task_id: The job that it is about; `None`: one that is to be accepted.
    """

    request: HttpRequest
    read: Callable[[HttpResponse], _Body]
    is_enough: Callable[[bytes], bool]
    decode: Callable[[bytes], _T]
    secrets: Secrets
    task_id: str | None = None


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
        self,
        request: ImageRequest,
        *,
        deadline: Deadline,
        max_retries: int | None = None,
        priority: int | None = None,
        key: str | None = None,
        maybe_accepted: bool = False,
        metadata: Mapping[str, Any] | None = None,
    ) -> str:
        """Ask for one image with ``POST /txt2img`` and return the task id.

        Args:
            request: What to draw, with its seeds.
            deadline: Ends everything.
            max_retries: How often it is sent again, if that cannot buy twice; 0: never; `None`:
                as the settings say.
            priority: 0 (first) to 7 (last), sent only to a service that has announced it; `None`:
                as any other request.
            key: The idempotency key, which is sent whatever this process knows of the service;
                `None`: a new one, if the service has announced that it takes them.
            maybe_accepted: True if it was sent with this key before and may have been accepted:
                then only an answer about the request itself can refuse it.
            metadata: Labels for the ledger; they are not sent.

        Raises:
            SubmissionUnknownError: It may have been accepted; it was not sent again.
            APIStatusError, APIResponseError: It was refused.
            APIConnectionError: It surely never arrived (``delivered == "no"``).
            JobStoppedError: The caller asked to stop before it was accepted.
            OSError: The ledger cannot be written; nothing was sent.
        """
        ledger, headers = self.settings.ledger, self._submit_headers(priority, key)
        retries = self.settings.max_retries if max_retries is None else max_retries
        send = partial(
            self._submit, request, deadline, retries, headers, maybe_accepted=maybe_accepted
        )
        if ledger is None:
            return send()
        with ledger.submitting(request, self.settings.base_url, metadata, key=key) as submit:
            submit.task_id = send()
        return submit.task_id

    def _submit(
        self,
        request: ImageRequest,
        deadline: Deadline,
        retries: int,
        headers: Mapping[str, str],
        *,
        maybe_accepted: bool,
    ) -> str:
        keyed = "idempotency-key" in headers
        call = _Call(
            self._post("/txt2img", wire.encode_image_request(request), headers),
            _read,
            lambda body: wire.find_task_id(body) is not None,
            wire.decode_submission,
            self._secrets(request),
        )
        attempt = 0
        # A submit in flight finishes, so that its id is known.
        unstoppable = deadline.without_stop()
        while True:
            if deadline.stopped:
                raise _stopped(maybe_accepted=maybe_accepted)
            attempt += 1
            try:
                task_id = self._exchange(call, unstoppable, attempt, maybe_accepted=maybe_accepted)
            except ImageLabsError as error:
                pause = submit_retry_delay(error, attempt, keyed=keyed)
                if attempt > retries or pause is None or pause >= deadline.remaining():
                    _give_up(error, maybe_accepted=maybe_accepted)
                maybe_accepted = error.delivered == "maybe"
                log.info("not accepted, sending again in %.1f s: %s", pause, error)
            else:
                self._log_accepted(task_id, request)
                return task_id
            deadline.pause(pause, self.sleep)

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
        return self._ask("/progress", task_id, deadline, request)

    def long_poll(
        self, task_id: str, poll: LongPoll, *, deadline: Deadline, request: ImageRequest | None
    ) -> tuple[Progress, str]:
        """Ask as `progress` does, and let the service answer when there is something to tell.

        Returns:
            The progress and the etag for the next poll; an empty one if the service has not
            parked the poll, although it had announced it.
        """
        heard: dict[str, str] = {}

        def read(response: HttpResponse) -> _Body:
            heard.update(response.headers)
            return _read(response)

        progress = self._ask(
            "/progress", task_id, deadline, request, headers=poll.headers, read=read
        )
        parked = "wait" in heard.get("preference-applied", "")
        return progress, heard.get("etag", "") if parked else ""

    def cancel(
        self, task_id: str, *, deadline: Deadline, request: ImageRequest | None
    ) -> Progress | None:
        """Stop a job with ``POST /cancel``; return its progress, or None if it has ended otherwise.

        Raises:
            NotSupportedError: The service has not announced it; nothing was sent.
        """
        if not self.features.cancel:
            raise NotSupportedError(
                f"{self.settings.base_url} has not announced that it can cancel jobs; of our own "
                "server this is known after the first answer (job.refresh())",
                task_id=task_id,
                delivered="no",
            )
        try:
            return self._ask("/cancel", task_id, deadline, request)
        except APIStatusError as error:
            if error.status_code == _CONFLICT:
                return None
            raise

    @property
    def features(self) -> Features:
        """Return what the service has announced in this process."""
        return known_features(self.settings.base_url)

    def _ask(
        self,
        path: str,
        task_id: str,
        deadline: Deadline,
        request: ImageRequest | None,
        *,
        headers: Mapping[str, str] | None = None,
        read: Callable[[HttpResponse], _Body] | None = None,
    ) -> Progress:
        """Ask once about a task; `request` is what nothing of the answer may quote."""
        query = self._post(path, wire.encode_progress_query(task_id), headers)
        decode = partial(wire.decode_progress, url=query.url, task_id=task_id)
        secrets = self._secrets(request)
        call = _Call(query, read or _read, wire.is_object, decode, secrets, task_id)
        return _redacted(self._exchange(call, deadline), secrets)

    def _submit_headers(self, priority: int | None, key: str | None) -> dict[str, str]:
        features, headers = self.features, {}
        if features.idempotency_key or key is not None:
            headers["idempotency-key"] = key or new_key()
        if features.priority and priority is not None:
            headers["priority"] = f"u={priority}"
        return headers

    def _post(
        self, path: str, body: bytes, headers: Mapping[str, str] | None = None
    ) -> HttpRequest:
        settings = self.settings
        more = headers or {}
        return HttpRequest(
            method="POST",
            url=settings.base_url + path,
            headers={**settings.headers, **more} if more else settings.headers,
            body=body,
            cookies=settings.cookies,
            jar=settings.jar,
            repeatable=path != "/txt2img" or "idempotency-key" in more,
        )

    def _log_accepted(self, task_id: str, request: ImageRequest) -> None:
        if job_log.isEnabledFor(logging.INFO):
            prompt = request.prompt
            shown = repr(prompt) if self.settings.log_prompts else f"{len(prompt)} characters"
            job_log.info("task %s accepted, prompt: %s", sanitize_text(task_id), shown)

    def _secrets(self, request: ImageRequest | None) -> Secrets:
        prompts = (request.prompt, request.negative_prompt) if request else ()
        return Secrets((*prompts, *self.settings.secrets))

    def _exchange(
        self, call: _Call[_T], deadline: Deadline, attempt: int = 1, *, maybe_accepted: bool = False
    ) -> _T:
        """Send a request once and decode the answer.

        Args:
            call: The request.
            deadline: Ends the exchange.
            attempt: 1 for the first.
            maybe_accepted: True if an earlier attempt may have been accepted.
        """
        try:
            if deadline.passed:
                raise APITimeoutError("no time is left for the request", delivered="no")
            within = deadline.within(self.settings.request_timeout)
            with self.transport.send(call.request, deadline=within) as response:
                log.debug("%s %s: %d", call.request.method, call.request.url, response.status)
                outcome = self._outcome(call, response)
            if isinstance(outcome, ImageLabsError):
                raise outcome
            return outcome
        except ImageLabsError as error:
            _complete(error, call, attempt, maybe_accepted=maybe_accepted)
            raise

    def _outcome(self, call: _Call[_T], response: HttpResponse) -> _T | ImageLabsError:
        """Return the result of an answer, or the error that it means.

        The error is raised elsewhere: error trackers show the local variables of its frames, and
        an answer may quote a prompt.
        """
        body, broken = call.read(response)
        is_success = 200 <= response.status < 300
        if is_success:
            remember_features(self.settings.base_url, response.headers)
        if not is_success or is_challenge(response, body):
            error: ImageLabsError = status_error(response, body)
        elif broken is not None and not call.is_enough(body):
            error = broken
            error.message = f"{describe_answer(response)}, which broke off: {error.message}"
        else:
            try:
                return call.decode(body)
            except APIResponseError as unusable:
                error = unusable
                error.message = f"{describe_answer(response)}: {error.message}"
        return with_body(error, response, body).with_traceback(None)


def _complete(
    error: ImageLabsError, call: _Call[_T], attempt: int, *, maybe_accepted: bool
) -> None:
    """Complete the error of an exchange: method, URL, attempts, remedy; without any secret.

    This is the one place where the words of a service and of a transport are redacted.
    """
    is_new = not error.endpoint  # a transport of the caller's may raise the same one again
    error.endpoint = f"{call.request.method} {call.request.url.partition('?')[0]}"
    error.task_id = call.task_id or error.task_id
    error.delivered = error.delivered or "maybe"  # ... or one that does not tell
    if maybe_accepted and not _settles(error):
        error.delivered = "maybe"
    error.redact(call.secrets)
    if is_new:
        tried = "once" if attempt == 1 else f"{attempt} times"
        remedy = remedy_for(error, is_submit=call.task_id is None)
        error.set_message(f"{error.endpoint} {error.message} (tried {tried}); {remedy}")


def _redacted(progress: Progress, secrets: Secrets) -> Progress:
    """Return the progress without anything that quotes a secret; most answers quote nothing."""
    if progress.status in _PLAIN_WORDS and not progress.refused and progress.raw.keys() <= _FIELDS:
        return progress
    return attrs.evolve(
        progress,
        status=redact(progress.status, secrets),
        refused=redact(progress.refused, secrets),
        info=redact_json(progress.info, secrets),
        raw=redact_json(progress.raw, secrets),
    )


def is_permanent_poll_error(error: ImageLabsError) -> bool:
    """Return True for a 4xx status that another poll cannot cure."""
    if not isinstance(error, APIStatusError) or isinstance(error, ChallengeError):
        return False
    return 400 <= error.status_code < 500 and error.status_code not in TRANSIENT


def submit_retry_delay(error: ImageLabsError, attempt: int, *, keyed: bool = False) -> float | None:
    """Return the seconds until a submit may be sent again after its `attempt`-th failure.

    `None`: never, because it may have been accepted, a person has to pass a check, or the service
    asks for a longer pause than a call can wait.

    Args:
        error: The failure.
        attempt: 1 for the first.
        keyed: True if the submit carries an idempotency key: then one that may have been accepted
            is sent again, too.
    """
    if isinstance(error, ChallengeError | InvalidRequestError):
        return None
    if error.delivered != "no" and not (keyed and error.delivered == "maybe"):
        return None
    asked = error.retry_after
    if asked is not None and asked > MAX_RETRY_AFTER:
        return None
    pause = min(_FIRST_PAUSE * 2.0 ** (attempt - 1), _LONGEST_PAUSE)
    return max(pause * (0.75 + random.random() / 4), asked or 0.0)


def _settles(error: ImageLabsError) -> bool:
    """Return True if an answer to a submit with a key says what became of its earlier attempts.

    Only an answer about the request itself does. A limit of rates, a question for credentials or
    a gateway's error may come from a server in front of the one that knows the key.
    """
    if isinstance(error, APIStatusError):
        return error.status_code in _JUDGEMENTS
    return error.delivered == "yes"


def _stopped(*, maybe_accepted: bool) -> ImageLabsError:
    """Return the error of a submit that its caller has stopped between two attempts."""
    if maybe_accepted:
        return SubmissionUnknownError(
            "stopped; the request may or may not have been accepted before, and it was not sent "
            "again"
        )
    return JobStoppedError("stopped before anything was submitted", delivered="no")


def _give_up(error: ImageLabsError, *, maybe_accepted: bool) -> NoReturn:
    """Raise the error of a failed submit; one that leaves its fate unknown has its own class.

    Args:
        error: The last attempt's.
        maybe_accepted: True if an earlier attempt may have been accepted.
    """
    no_answer = isinstance(error, APIConnectionError | APIResponseError)
    if error.delivered == "maybe" and (no_answer or maybe_accepted):
        raise SubmissionUnknownError(
            f"the request may or may not have been accepted, so it was not sent again: "
            f"{error.message}",
            endpoint=error.endpoint,
            task_id=error.task_id,
            request_id=error.request_id,
            body=error.body,
        ) from error
    raise error


# Reading a body ------------------------------------------------------------------------


def _read(response: HttpResponse) -> _Body:
    body = bytearray()
    try:
        for chunk in response.iter_bytes():
            body += chunk
            if len(body) > _MAX_ANSWER:
                raise APIResponseError(f"the answer is longer than {_MAX_ANSWER} bytes")
    except ImageLabsError as error:
        return bytes(body), error
    return bytes(body), None
