"""A transport of your own: here one that prints each exchange and leaves it to another.

    python own_transport.py "a lighthouse at dusk" --out lighthouse.png
    python own_transport.py --embedded             # offline: this process draws

Without --embedded the service draws, or the one that IMAGELABS_BASE_URL names.
"""

import argparse
import time
from contextlib import closing
from urllib.parse import urlsplit

import attrs

from imagelabs_sdk import (
    Deadline,
    HandlerTransport,
    HttpRequest,
    HttpResponse,
    ImageLabs,
    RequestsTransport,
    Transport,
)


@attrs.frozen
class PrintingTransport:
    """Prints each exchange.

    Attributes:
        inner: Does the work.
    """

    inner: Transport

    def send(self, request: HttpRequest, *, deadline: Deadline) -> HttpResponse:
        """Carry `request`; what comes is not judged, so that an error status is an answer."""
        began, outcome = time.monotonic(), "no answer"
        try:
            response = self.inner.send(request, deadline=deadline)
            outcome = str(response.status)
        finally:
            path, took = urlsplit(request.url).path, 1000 * (time.monotonic() - began)
            print(f"{request.method:4} {path} -> {outcome}, {took:.0f} ms")
        return response

    def close(self) -> None:
        """Let go of every connection."""
        self.inner.close()


def network(*, embedded: bool) -> Transport:
    if not embedded:
        return RequestsTransport()
    from imagelabs_sdk.server.local import LocalServer  # pip install "imagelabs_sdk[server]"

    return HandlerTransport(LocalServer())


def main() -> None:
    parser = argparse.ArgumentParser(description="Print each exchange with the service.")
    parser.add_argument("prompt", nargs="?", default="a lighthouse at dusk")
    parser.add_argument("--out", default="lighthouse.png", help="the file to write")
    parser.add_argument("--embedded", action="store_true", help="draw in this process, offline")
    options = parser.parse_args()

    # The client closes only what it has opened itself; this transport is ours.
    with closing(PrintingTransport(network(embedded=options.embedded))) as transport:
        client = ImageLabs(transport=transport)
        print(client.generate(options.prompt, width=768, height=512).save(options.out))


if __name__ == "__main__":
    main()
