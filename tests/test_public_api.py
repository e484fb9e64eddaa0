"""The public names and signatures do not change by accident."""

from tests.public_api import LISTING, describe


def test_the_public_names_are_those_of_the_listing() -> None:
    """A change is reviewed as a diff of one file: `python -m tests.public_api --write`."""
    assert describe() == LISTING.read_text(encoding="utf-8")
