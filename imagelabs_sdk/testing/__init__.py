"""A kit for testing what you build on the SDK: a scripted service and a clock nobody waits for.

    >>> from imagelabs_sdk.testing import FakeService
    >>> service = FakeService().queued(2).progress(0.1, 0.6).done()
    >>> image = service.client().generate("a cat")
    >>> service.assert_submitted_once(prompt="a cat")

``docs/testing.md`` has a recipe for each failure. For pytest:
``pytest_plugins = ["imagelabs_sdk.testing.fixtures"]``. For a transport of your own:
`check_transport`.
"""

from .backend import FakeBackend, outbox
from .clock import FakeClock
from .conformance import PROMISES, check_transport
from .scenario import load_scenario
from .script import JobScript
from .service import FakeService, SentRequest, Submit
from .sockets import serve_in_thread

__all__ = [
    "PROMISES",
    "FakeBackend",
    "FakeClock",
    "FakeService",
    "JobScript",
    "SentRequest",
    "Submit",
    "check_transport",
    "load_scenario",
    "outbox",
    "serve_in_thread",
]
