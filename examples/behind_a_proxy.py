"""Behind a proxy, with an authority of one's own, and past Cloudflare's check.

    python behind_a_proxy.py --proxy http://proxy.example:3128 --ca-bundle company.pem
    python behind_a_proxy.py --cookie "cf_clearance=..." --user-agent "Mozilla/5.0 ..."
    python behind_a_proxy.py --embedded            # offline: service and proxy on 127.0.0.1

`ChallengeError` says that a check stands in front of the service. Pass it in your browser; then
poll in its developer tools at any request to the service, and copy two of the request's headers:
the whole "cookie", and the exact "user-agent". They serve until the check is shown again.

Others may see a command line. For secrets there are IMAGELABS_PROXY and IMAGELABS_COOKIE, and
with them IMAGELABS_USER_AGENT; what is not given below comes from there.
"""

import argparse
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import urlsplit

from imagelabs_sdk import ImageLabs


def draw(options: argparse.Namespace, **more: Any) -> None:
    settings: dict[str, Any] = {
        "proxy": options.proxy,
        "verify": options.ca_bundle or True,  # never False: then anybody could read along
        "cookies": options.cookie,
        "headers": {"user-agent": options.user_agent} if options.user_agent else None,
    }
    with ImageLabs(**{**settings, **more}) as client:
        print(client.generate(options.prompt, width=768, height=512).save(options.out))


def main() -> None:
    parser = argparse.ArgumentParser(description="Draw an image from behind a proxy.")
    parser.add_argument("prompt", nargs="?", default="a lighthouse at dusk")
    parser.add_argument("--out", default="lighthouse.png", help="the file to write")
    parser.add_argument("--proxy", help="such as http://user:password@host:3128")
    parser.add_argument("--ca-bundle", help="a PEM file with the proxy's own authority")
    parser.add_argument("--cookie", help='a browser\'s "cookie" header')
    parser.add_argument("--user-agent", help='the same browser\'s "user-agent" header')
    parser.add_argument("--embedded", action="store_true", help="service and proxy on 127.0.0.1")
    options = parser.parse_args()

    if options.embedded:
        with loopback() as (base_url, proxy):
            draw(options, base_url=base_url, proxy=proxy)
    else:
        draw(options)


# Only for --embedded: a service and a proxy to go through -------------------------------


class Proxy(BaseHTTPRequestHandler):
    """As little of a proxy as will do: http alone. It logs each request that it passes on."""

    def do_POST(self) -> None:
        """Ask on behalf of who asks us, and hand the answer back."""
        target = urlsplit(self.path)
        where = target._replace(scheme="", netloc="").geturl()
        body = self.rfile.read(int(self.headers.get("content-length", 0)))
        with closing(HTTPConnection(target.netloc, timeout=30)) as onward:
            onward.request(self.command, where, body, dict(self.headers))
            answer = onward.getresponse()
            self.send_response(answer.status)
            self.send_header("content-type", answer.headers["content-type"])
            self.send_header("content-length", answer.headers["content-length"])
            self.end_headers()
            self.wfile.write(answer.read())

    do_GET = do_POST  # noqa: N815 - the name that http.server looks for


@contextmanager
def loopback() -> Iterator[tuple[str, str]]:
    """The addresses of a service and of a proxy, which run while the block lasts."""
    from imagelabs_sdk.server.http import running  # pip install "imagelabs_sdk[server]"
    from imagelabs_sdk.server.local import LocalServer

    address = ("127.0.0.1", 0)
    with running(LocalServer()) as url, ThreadingHTTPServer(address, Proxy) as proxy:
        threading.Thread(target=proxy.serve_forever).start()
        try:
            yield url, f"http://127.0.0.1:{proxy.server_port}"
        finally:
            proxy.shutdown()


if __name__ == "__main__":
    main()
