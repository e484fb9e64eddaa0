"""``IMAGELABS_LOG`` shows the log of a script that sets up no logging."""

import logging
from collections.abc import Iterator

import pytest

from imagelabs_sdk import ImageLabs, InvalidRequestError


@pytest.fixture(autouse=True)
def _restore_logging() -> Iterator[None]:
    logger = logging.getLogger("imagelabs_sdk")
    level, handlers = logger.level, logger.handlers[:]
    yield
    logger.setLevel(level)
    logger.handlers[:] = handlers


@pytest.mark.parametrize(("level", "shown"), [("info", ["warm"]), (" DEBUG ", ["cold", "warm"])])
def test_the_log_is_on_stderr_from_the_level_on(
    level: str,
    shown: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Once for each line, however many clients are made."""
    monkeypatch.setenv("IMAGELABS_LOG", level)
    for _ in range(2):
        ImageLabs()
    log = logging.getLogger("imagelabs_sdk.jobs")
    log.debug("cold")
    log.info("warm")
    out, err = capsys.readouterr()
    assert out == ""
    assert [line.rpartition(": ")[2] for line in err.splitlines()] == shown


def test_another_word_is_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else nobody learns why nothing is shown."""
    monkeypatch.setenv("IMAGELABS_LOG", "verbose")
    with pytest.raises(InvalidRequestError, match="IMAGELABS_LOG='verbose': must be debug or info"):
        ImageLabs()
