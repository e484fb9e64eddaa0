"""Options that become fields of a request."""

import json

import pytest

from imagelabs_sdk.testing import FakeService
from tests.cli.command import Command


def test_a_subseed_is_sent_and_told(imagelabs: Command, service: FakeService) -> None:
    """Summary, JSON and service agree on what makes the same image again."""
    words = ("generate", "x", "-o", "x.png", "--seed", 7, "--subseed", 8)
    assert "seed 7, subseed 8, " in imagelabs(*words).stderr
    service.assert_submitted_once(seed=7, subseed=8)
    facts = json.loads(imagelabs(*words, "--json").stdout)
    assert (facts["seed"], facts["subseed"]) == (7, 8)


def test_fields_without_an_option_are_sent_as_json(
    imagelabs: Command, service: FakeService
) -> None:
    """Older clients of the service show several."""
    extra = ["cfg_scale=7.5", 'site="x=y"', "restore_faces=true", "pose=null"]
    words = [word for each in extra for word in ("--extra", each)]
    assert imagelabs("generate", "x", "-o", "x.png", *words).exit_code == 0
    service.assert_submitted_once(cfg_scale=7.5, site="x=y", restore_faces=True, pose=None)


@pytest.mark.parametrize(
    ("value", "word"),
    [
        ("cfg_scale", "is not KEY=JSON"),
        ("=1", "is not KEY=JSON"),
        ("site=x", "site='\"x\"' for text"),
        ("a=" + "[" * 99999, "is not KEY=JSON"),
        ("a=NaN", "--extra"),
        ("seed=5", "seed has an option of its own"),
        ("width=5", "width has an option of its own"),
    ],
)
def test_an_extra_that_cannot_be_used_is_refused(
    imagelabs: Command, service: FakeService, value: str, word: str
) -> None:
    """A seed in there would be sent, and another one told."""
    result = imagelabs("generate", "x", "--extra", value)
    assert result.exit_code == 2
    assert word in result.stderr
    assert not service.sent
