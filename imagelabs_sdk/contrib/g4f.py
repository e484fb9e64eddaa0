"""The asynchronous provider, in the shape that g4f gives its image providers.

    >>> async for response in ImageLabs.create_async_generator(
    ...     "sdxl-turbo", [{"role": "user", "content": "a lighthouse"}]
    ... ):
    ...     print(response.images[0])

Each exchange with the service is one of the synchronous client's, made in a thread; between
them the event loop sleeps, so that nothing ever blocks it.
"""

import asyncio
import re
from collections.abc import AsyncGenerator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar
from urllib.parse import quote

import attrs

from imagelabs_sdk import (
    Deadline,
    ImageRequest,
    InvalidRequestError,
    Job,
    ReferenceProvider,
    attach_job,
)
from imagelabs_sdk import ImageLabs as Client

__all__ = ["ImageLabs", "ImageResponse"]

_WIDTH, _HEIGHT = 1152, 896  # pixels; the reference provider's
_OPTIONS = {field.name for field in attrs.fields(ImageRequest)}
_MARKUP = re.compile(r"([\\\[\]`<>])")  # what would end the text of a link, or start another thing
_PLAIN = ":/?#[]@!$&'*+,;=%~"  # what an address may hold in Markdown; parentheses would end it


@attrs.frozen
class ImageResponse:
    """What the provider yields. ``str()`` is Markdown: each image, linked to itself.

    Attributes:
        images: Addresses. Nothing has been fetched from them.
        alt: The prompt. ``repr()`` does not show it.
    """

    images: list[str] = attrs.field(
        hash=False, repr=lambda urls: repr([url.partition("?")[0] for url in urls])
    )
    alt: str = attrs.field(repr=lambda text: f"<{len(text)} characters>")

    def __str__(self) -> str:
        alt = _MARKUP.sub(r"\\\1", " ".join(self.alt.split()))
        addresses = (quote(url, safe=_PLAIN) for url in self.images)
        return "\n".join(f"[![{alt}]({url})]({url})" for url in addresses)


class ImageLabs(ReferenceProvider):
    """The provider. It has no instances: all its methods are class methods."""

    supports_stream: ClassVar[bool] = False
    supports_system_message: ClassVar[bool] = False
    supports_message_history: ClassVar[bool] = False

    @classmethod
    async def create_async_generator(  # noqa: PLR0917 - g4f's order of arguments
        cls,
        model: str,
        messages: Sequence[Mapping[str, Any]],
        proxy: str | None = None,
        prompt: str | None = None,
        negative_prompt: str = "",
        width: int = _WIDTH,
        height: int = _HEIGHT,
        *,
        client: Client | None = None,
        timeout: float | Deadline | None = None,
        **kwargs: Any,
    ) -> AsyncGenerator[ImageResponse, None]:
        """Draw one image and yield its address.

        Cancelling the task ends it at once; at most the one exchange that is under way runs
        out in its thread. If that is the submit, the job may have been accepted; later, the
        `asyncio.CancelledError` carries the task id as a note.

        Args:
            model: Ignored: there is one.
            messages: The content of the last one is the prompt, if `prompt` is `None`: text, or
                a list of parts whose texts are joined.
            proxy: Such as ``"http://user:password@host:3128"``; not together with `client`.
            prompt: What to draw.
            negative_prompt: What to keep out.
            width: In pixels.
            height: In pixels.
            client: Asks on our behalf and stays yours to close; it may resend a submit as
                often as its `max_retries` says, also after a cancellation. `None`: one with the
                settings of the environment, which sends a submit once and is closed at the end.
            timeout: Seconds for everything, or a `Deadline`; `None`: the client's; infinity: no
                limit.
            **kwargs: The other fields of `ImageRequest` are used, such as ``seed`` and
                ``aspect_ratio``. Everything else is ignored: g4f passes all it has.

        Raises:
            InvalidRequestError: There is no prompt, or a value cannot be used; nothing was sent.
            ImageLabsError: As in the synchronous `generate`; after submit, `job` is set.
        """
        options = {name: value for name, value in kwargs.items() if name in _OPTIONS}
        if (width, height) != (_WIDTH, _HEIGHT):  # else ImageRequest's own, or by aspect_ratio
            options |= {"width": width, "height": height}
        prompt = _last_words(messages) if prompt is None else prompt
        request = ImageRequest(prompt, negative_prompt=negative_prompt, **options)
        with _ready(client, proxy) as asking:
            address = await _draw(asking, request, timeout)
        yield ImageResponse([address], alt=prompt)


def _last_words(messages: Sequence[Mapping[str, Any]]) -> str:
    """The text of the last message.

    Raises:
        InvalidRequestError: It has none.
    """
    content = messages[-1].get("content") if messages else None
    if isinstance(content, list):
        texts = [part.get("text") for part in content if isinstance(part, Mapping)]
        content = " ".join(text for text in texts if isinstance(text, str))
    if not isinstance(content, str) or not content.strip():
        raise InvalidRequestError(
            "prompt: is required, or a last message with text in its content", field="prompt"
        )
    return content


@contextmanager
def _ready(client: Client | None, proxy: str | None) -> Iterator[Client]:
    """The caller's client, or one of our own that is closed at the end."""
    if client is None:
        # No resending: between two attempts the client would sleep in its thread, and after a
        # cancellation wake up and buy an image that nobody waits for.
        with Client(proxy=proxy, max_retries=0) as own:
            yield own
    elif proxy is not None:
        raise InvalidRequestError("proxy: the client has its own", field="proxy")
    else:
        yield client


async def _draw(client: Client, request: ImageRequest, timeout: float | Deadline | None) -> str:
    """Return the URL of the finished image."""
    deadline = client.deadline(timeout)
    job = await asyncio.to_thread(client.submit, request, timeout=deadline)
    with attach_job(job):
        await _wait(job, deadline)
        return job.image().url


async def _wait(job: Job, deadline: Deadline) -> None:
    while not job.done:
        await asyncio.sleep(min(job.next_poll_in, deadline.remaining()))
        await asyncio.to_thread(job.poll, timeout=deadline)
