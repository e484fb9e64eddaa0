"""Names of output files, checked before an image is paid for."""

import itertools
import tempfile
from contextlib import suppress
from pathlib import Path

import click

__all__ = ["check_writable", "unused_name"]


def unused_name(stem: str, folder: Path = Path()) -> Path:
    """Return `stem`, or `stem` with a number, that no file in the folder has yet.

    The name has no extension: the image's format gives it.
    """
    numbered = (f"{stem}-{number}" for number in itertools.count(2))
    names = itertools.chain([stem], numbered)
    return next(folder / name for name in names if not any(folder.glob(f"{name}[.-]*")))


def check_writable(path: Path) -> Path:
    """Return `path` if a file can be written there.

    Raises:
        click.BadParameter: It is not a plain file in a folder that exists.
        click.ClickException: The system does not let us write there.
    """
    # The longest name that may be written: a missing extension is added.
    longest = path.parent / (path.name if path.suffix else path.name + ".avif")
    try:
        plain = path.name not in ("", "-") and (path.is_file() or not path.exists())
        if not plain or not path.parent.is_dir():
            raise click.BadParameter(f"{str(path)!r} must be a file in a folder that exists")
        with suppress(FileNotFoundError):
            longest.lstat()  # fails for a name that is too long
        with tempfile.TemporaryFile(dir=path.parent):
            return path
    except OSError as error:
        raise click.ClickException(f"{path} cannot be written: {error.strerror}") from error
