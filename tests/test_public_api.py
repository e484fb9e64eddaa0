"""The public names and signatures do not change by accident."""

import types
import warnings

from imagelabs_sdk import ImageLabsDeprecationWarning
from tests.public_api import LISTING, REFERENCE, describe, reference


def test_the_public_names_are_those_of_the_listing() -> None:
    """A change is reviewed as a diff of one file: `python -m tests.public_api --write`."""
    assert describe() == LISTING.read_text(encoding="utf-8")


def test_the_reference_begins_with_every_public_name() -> None:
    """For those who read the page's source; `python -m tests.public_api --write` writes it."""
    assert "| `ImageLabs` | A client" in REFERENCE.read_text(encoding="utf-8")
    assert reference() == REFERENCE.read_text(encoding="utf-8")


class Image:
    """What is drawn."""

    def save(self) -> None:
        """Write it to a file."""

    def keep(self) -> None:
        """Write it to a file.

        Deprecated: use `save`; removed in 0.11.
        """

    @property
    def link(self) -> str:
        """Deprecated: use `url`; removed in 0.11."""
        return ""


def draw() -> Image:
    """Deprecated: use `generate`; removed in 0.11."""
    return Image()


class Package(types.ModuleType):
    """A package with an old name of a class."""

    __all__ = ("Image", "Picture", "draw")
    Image = Image
    draw = staticmethod(draw)

    def __getattr__(self, name: str) -> object:
        warnings.warn(name, ImageLabsDeprecationWarning, stacklevel=2)
        return Image


def test_the_listing_marks_what_is_deprecated() -> None:
    """So that the diff of a change shows it, and the next minor version finds what to remove."""
    assert describe(Package("package")).splitlines() == [
        "class Image()()",
        "    Image.keep(self) -> None  # deprecated",
        "    Image.link: property  # deprecated",
        "    Image.save(self) -> None",
        "class Picture()()  # deprecated",
        "    Picture.keep(self) -> None  # deprecated",
        "    Picture.link: property  # deprecated",
        "    Picture.save(self) -> None",
        "draw() -> Image  # deprecated",
    ]
