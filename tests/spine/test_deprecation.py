"""Names that are going to be removed: what a user is told, and where."""

import os
import subprocess
import sys
import types
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from imagelabs_sdk import ImageLabsDeprecationWarning

ROOM = """
from imagelabs_sdk._deprecation import warn_deprecated

def draw(prompt, *, size=None, side=None):
    if side is not None:
        warn_deprecated("draw(side=)", removed_in="0.11", instead="size=")
    return prompt, size or side

def draw_many(prompts, **options):
    return [draw(prompt, **options) for prompt in prompts]

class Image:
    def keep(self):
        warn_deprecated("Image.keep()", removed_in="0.11", instead="Image.save()")

def __getattr__(name):
    if name == "Picture":
        warn_deprecated("Picture", removed_in="0.11", instead="Image")
        return Image
    raise AttributeError(name)
"""


@pytest.fixture
def room(monkeypatch: pytest.MonkeyPatch) -> Iterator[types.ModuleType]:
    """A module of the package in which things are deprecated in every way there is."""
    module = types.ModuleType("imagelabs_sdk.example")
    exec(compile(ROOM, "imagelabs_sdk/example.py", "exec"), module.__dict__)
    monkeypatch.setitem(sys.modules, module.__name__, module)
    return module


def imported() -> object:
    from imagelabs_sdk.example import Picture  # type: ignore[import-not-found]

    return Picture


@pytest.mark.parametrize(
    ("use", "text"),
    [
        (lambda room: room.draw("x", side=8), "draw(side=)*size="),
        (lambda room: room.draw_many(["x"], side=8), "draw(side=)*size="),
        (lambda room: room.Image().keep(), "Image.keep()*Image.save()"),
        (lambda room: room.Picture, "Picture*Image"),
    ],
    ids=["argument", "deep below", "method", "name"],
)
def test_a_warning_points_at_the_line_that_uses_the_name(
    room: types.ModuleType, use: Callable[[types.ModuleType], object], text: str
) -> None:
    """A line of this package would help nobody."""
    with pytest.warns(ImageLabsDeprecationWarning) as caught:
        use(room)
    assert (caught[0].filename, caught[0].lineno) == (__file__, use.__code__.co_firstlineno)
    name, _, instead = text.partition("*")
    expected = f"{name} is deprecated and will be removed in 0.11: use {instead}"
    assert str(caught[0].message) == expected


def test_importing_an_old_name_points_at_the_import(room: types.ModuleType) -> None:
    """Python's own import machinery stands in between."""
    with pytest.warns(ImageLabsDeprecationWarning) as caught:
        assert imported() is room.Image
    assert (caught[0].filename, caught[0].lineno) == (
        __file__,
        imported.__code__.co_firstlineno + 1,
    )


def test_what_is_not_deprecated_warns_of_nothing(room: types.ModuleType) -> None:
    """The new spelling is the way out."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert room.draw("x", size=8) == ("x", 8)
        with pytest.raises(AttributeError):
            room.Portrait  # noqa: B018 - reading it is the test


USE = """
from imagelabs_sdk._deprecation import warn_deprecated

def test_use():
    warn_deprecated("Picture", removed_in="0.11", instead="Image")
"""


@pytest.mark.parametrize(
    ("option", "status"),
    [("default::DeprecationWarning", 0), ("error::imagelabs_sdk.ImageLabsDeprecationWarning", 1)],
)
def test_a_user_of_pytest_can_make_it_an_error(option: str, status: int, tmp_path: Path) -> None:
    """As the upgrade policy says."""
    (tmp_path / "test_use.py").write_text(USE)
    plain = ["-c", os.devnull, "-p", "no:cacheprovider", "-p", "no:django", "-W", option]
    done = run("-m", "pytest", *plain, str(tmp_path))
    assert done.returncode == status, done.stdout
    assert "Picture is deprecated and will be removed in 0.11: use Image" in done.stdout


def test_a_program_with_no_line_outside_of_the_package_is_warned_all_the_same() -> None:
    """Its first line has to do."""
    code = (
        "from imagelabs_sdk._deprecation import warn_deprecated as w\n"
        "__name__ = 'imagelabs_sdk.example'\n"
        "w('Picture', removed_in='0.11', instead='Image')"
    )
    done = run("-W", "always", "-c", code)
    assert done.returncode == 0
    assert "Picture is deprecated" in done.stderr


def run(*arguments: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, *arguments], capture_output=True, text=True, timeout=60, check=False
    )
