"""The same job done in several ways.

Each is imported where it is used, so that a fresh process pays for one alone.
"""

import contextlib
import functools
import importlib.util
import json
import os
from collections.abc import Callable, Mapping
from typing import IO, Any

__all__ = ["DOWNLOADS", "JOBS", "LOOP", "OURS", "installed"]

Job = Callable[[], object]
"""One job: a submit, and polls until it is done."""

OURS, LOOP = "imagelabs_sdk", "Session loop"
TIMEOUT = 30.0  # seconds
PIECE = 1 << 20  # bytes
PROMPT = "a lighthouse at dusk, oil on canvas"
BODY = {
    "prompt": PROMPT,
    "negative_prompt": "",
    "width": 1152,
    "height": 896,
    "seed": "1234567890",
    "subseed": "1234567890",
    "attention": 0,
    "tiling": False,
    "reference_image": "",
    "reference_image_type": None,
    "reference_strength": 30,
}
HEADERS = {
    "accept": "*/*",
    "accept-language": "en-US,en;q=0.9",
    "cache-control": "no-cache",
    "origin": "https://editor.imagelabs.net",
    "referer": "https://editor.imagelabs.net/",
    "x-requested-with": "XMLHttpRequest",
    "user-agent": "Mozilla/5.0 (X11; Linux x86_64) Chrome/131.0.0.0 Safari/537.36",
}


def installed(package: str) -> bool:
    """Whether a package is there, without importing it."""
    return importlib.util.find_spec(package) is not None


def never_sleep(_: float) -> None:
    """Polls at once: for jobs that take no time."""


# A job -----------------------------------------------------------------------------------


def ours(base: str, bundle: str | None) -> Job:
    """This SDK, as its README shows it, but for the sleep before the first poll."""
    from imagelabs_sdk import ImageLabs
    from imagelabs_sdk.polling import Adaptive

    client = ImageLabs(base, verify=bundle or True, polling=Adaptive(sleep=never_sleep))
    return lambda: client.generate(PROMPT)


def session_loop(
    base: str, bundle: str | None, sleep: Callable[[float], None] = never_sleep
) -> Job:
    """What one would write by hand with `requests`."""
    import requests

    session = requests.Session()
    session.headers.update(HEADERS)
    session.verify = bundle or True

    def ask(path: str, body: Mapping[str, Any]) -> Any:
        response = session.post(base + path, json=body, timeout=TIMEOUT)
        response.raise_for_status()
        return response.json()

    return lambda: polled(ask, sleep)


def polled(ask: Callable[[str, Mapping[str, Any]], Any], sleep: Callable[[float], None]) -> str:
    """Submit, then ask once a second until the image is there; answers the task id."""
    task_id: str = ask("/txt2img", BODY)["task_id"]
    while True:
        sleep(1.0)
        progress = ask("/progress", {"task_id": task_id})
        if progress["status"] == "Done":
            return task_id


def pool_alone(base: str, bundle: str | None) -> Job:
    """urllib3 without `requests`, checks or deadline: the floor."""
    import urllib3

    headers = {**HEADERS, "content-type": "application/json"}
    pool = urllib3.PoolManager(ca_certs=bundle, headers=headers, retries=False, timeout=TIMEOUT)

    def ask(path: str, body: Mapping[str, Any]) -> Any:
        response = pool.urlopen("POST", base + path, body=json.dumps(body))
        assert response.status == 200
        return response.json()

    return lambda: polled(ask, never_sleep)


def httpx_loop(base: str, bundle: str | None) -> Job:
    """The hand-written loop with `httpx.Client`."""
    client = _httpx_client(bundle)

    def ask(path: str, body: Mapping[str, Any]) -> Any:
        return client.post(base + path, json=body).raise_for_status().json()

    return lambda: polled(ask, never_sleep)


def _httpx_client(bundle: str | None) -> Any:
    import ssl

    httpx = importlib.import_module("httpx")
    verify = ssl.create_default_context(cafile=bundle) if bundle else True
    return httpx.Client(headers=HEADERS, verify=verify, timeout=TIMEOUT)


JOBS: dict[str, Callable[[str, str | None], Job]] = {
    LOOP: session_loop,
    OURS: ours,
    "urllib3 pool": pool_alone,
    **({"httpx.Client": httpx_loop} if installed("httpx") else {}),
}

# A download ------------------------------------------------------------------------------

Download = Callable[[str], object]
"""Brings an image to the file of that path, over a connection that it opens itself."""


def saved(base: str) -> Download:
    """`GeneratedImage.save`, with all its checks and its fsync."""
    from imagelabs_sdk import ImageLabs
    from imagelabs_sdk.polling import Adaptive

    polling = Adaptive(sleep=never_sleep)
    with ImageLabs(base, polling=polling, max_image_bytes=1 << 30) as client:
        return client.generate(PROMPT).save  # an image outlives its client


def iter_content(url: str, path: str, *, sync: bool = False) -> None:
    """`requests`, one MiB at a time."""
    import requests

    with requests.Session() as session, session.get(url, stream=True) as response:
        response.raise_for_status()
        with open(path, "wb") as file:
            for piece in response.iter_content(PIECE):
                file.write(piece)
            if sync:
                file.flush()
                os.fsync(file.fileno())


def content(url: str, path: str) -> None:
    """`requests`, all at once."""
    import requests

    with requests.Session() as session, open(path, "wb") as file:
        response = session.get(url, timeout=TIMEOUT)
        response.raise_for_status()
        file.write(response.content)


def pool_stream(url: str, path: str) -> None:
    """urllib3, one MiB at a time."""
    import urllib3

    with urllib3.PoolManager() as pool, open(path, "wb") as file:
        response = pool.urlopen("GET", url, preload_content=False)
        for piece in response.stream(PIECE):
            file.write(piece)


def httpx_stream(url: str, path: str) -> None:
    """`httpx`, one MiB at a time."""
    with contextlib.ExitStack() as stack:
        client = stack.enter_context(_httpx_client(None))
        response = stack.enter_context(client.stream("GET", url))
        file: IO[bytes] = stack.enter_context(open(path, "wb"))
        for piece in response.raise_for_status().iter_bytes(PIECE):
            file.write(piece)


def _by_address(fetch: Callable[[str, str], object]) -> Callable[[str], Download]:
    return lambda base: functools.partial(fetch, _make_image(base))


def _make_image(base: str) -> str:
    origin, _, size = base.rpartition("x")
    return f"{origin.rpartition('/')[0]}/image/{size}.png"


DOWNLOADS: dict[str, Callable[[str], Download]] = {
    "iter_content(1 MiB)": _by_address(iter_content),
    "iter_content(1 MiB), fsync": _by_address(functools.partial(iter_content, sync=True)),
    "GeneratedImage.save": saved,
    ".content": _by_address(content),
    "urllib3 stream(1 MiB)": _by_address(pool_stream),
    **({"httpx iter_bytes(1 MiB)": _by_address(httpx_stream)} if installed("httpx") else {}),
}
