"""A synchronous SDK for the ImageLabs text-to-image service.

    >>> from imagelabs_sdk import ImageLabs
    >>> with ImageLabs() as client:
    ...     client.generate("a lighthouse").save("lighthouse.png")

The names are loaded when they are first used, so that importing the package costs little.
"""

from importlib import import_module
from typing import TYPE_CHECKING

__version__ = "0.9.0"

if TYPE_CHECKING:
    from ._deprecation import ImageLabsDeprecationWarning as ImageLabsDeprecationWarning
    from ._redact import sanitize_text as sanitize_text
    from .batch.batch import Batch as Batch
    from .batch.scheduler import Outcome as Outcome
    from .client import ImageLabs as ImageLabs
    from .deadline import Deadline as Deadline
    from .errors import AcceptedJob as AcceptedJob
    from .errors import APIConnectionError as APIConnectionError
    from .errors import APIResponseError as APIResponseError
    from .errors import APIStatusError as APIStatusError
    from .errors import APITimeoutError as APITimeoutError
    from .errors import AuthenticationError as AuthenticationError
    from .errors import BatchStoppedError as BatchStoppedError
    from .errors import ChallengeError as ChallengeError
    from .errors import DownloadError as DownloadError
    from .errors import ForbiddenAddressError as ForbiddenAddressError
    from .errors import ImageLabsError as ImageLabsError
    from .errors import InvalidRequestError as InvalidRequestError
    from .errors import JobError as JobError
    from .errors import JobFailedError as JobFailedError
    from .errors import JobRefusedError as JobRefusedError
    from .errors import JobStalledError as JobStalledError
    from .errors import JobStoppedError as JobStoppedError
    from .errors import JobTimeoutError as JobTimeoutError
    from .errors import NotSupportedError as NotSupportedError
    from .errors import PermissionDeniedError as PermissionDeniedError
    from .errors import RateLimitError as RateLimitError
    from .errors import SubmissionUnknownError as SubmissionUnknownError
    from .errors import attach_job as attach_job
    from .formats import ImageFormat as ImageFormat
    from .formats import sniff as sniff
    from .images import GeneratedImage as GeneratedImage
    from .images import RequestedImage as RequestedImage
    from .images import Timings as Timings
    from .jobs import Job as Job
    from .jobs import PollResult as PollResult
    from .ledger import Ledger as Ledger
    from .ledger import LedgerEntry as LedgerEntry
    from .models import Eta as Eta
    from .models import ImageRequest as ImageRequest
    from .models import Progress as Progress
    from .models import State as State
    from .polling import Adaptive as Adaptive
    from .polling import Backoff as Backoff
    from .polling import FixedInterval as FixedInterval
    from .polling import Poll as Poll
    from .polling import PollingStrategy as PollingStrategy
    from .polling import after_failures as after_failures
    from .reference import ReferenceProvider as ReferenceProvider
    from .reference_images import encode_image as encode_image
    from .transports.base import HttpRequest as HttpRequest
    from .transports.base import HttpResponse as HttpResponse
    from .transports.base import Transport as Transport
    from .transports.cassette import CassetteError as CassetteError
    from .transports.cassette import CassetteTransport as CassetteTransport
    from .transports.handler import HandlerTransport as HandlerTransport
    from .transports.observed import RequestInfo as RequestInfo
    from .transports.observed import ResponseInfo as ResponseInfo
    from .transports.requests import RequestsTransport as RequestsTransport

_ROOMS = {
    "_deprecation": "ImageLabsDeprecationWarning",
    "_redact": "sanitize_text",
    "batch.batch": "Batch",
    "batch.scheduler": "Outcome",
    "client": "ImageLabs",
    "deadline": "Deadline",
    "errors": "AcceptedJob AuthenticationError JobRefusedError PermissionDeniedError "
    "APIConnectionError APIResponseError APIStatusError APITimeoutError "
    "BatchStoppedError ChallengeError DownloadError ForbiddenAddressError ImageLabsError "
    "InvalidRequestError JobError JobFailedError JobStalledError JobStoppedError JobTimeoutError "
    "NotSupportedError RateLimitError SubmissionUnknownError attach_job",
    "formats": "ImageFormat sniff",
    "images": "GeneratedImage RequestedImage Timings",
    "jobs": "Job PollResult",
    "ledger": "Ledger LedgerEntry",
    "models": "Eta ImageRequest Progress State",
    "polling": "Adaptive Backoff FixedInterval Poll PollingStrategy after_failures",
    "reference": "ReferenceProvider",
    "reference_images": "encode_image",
    "transports.base": "HttpRequest HttpResponse Transport",
    "transports.cassette": "CassetteError CassetteTransport",
    "transports.handler": "HandlerTransport",
    "transports.observed": "RequestInfo ResponseInfo",
    "transports.requests": "RequestsTransport",
}
_HOME = {name: room for room, names in _ROOMS.items() for name in names.split()}

__all__ = ["__version__", *sorted(_HOME)]  # noqa: PLE0604 - the names are text, built above


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value: object = getattr(import_module(f".{_HOME[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
