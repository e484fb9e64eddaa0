"""The entry point, with and without its extra."""

import re
import runpy
import subprocess
import sys

import pytest

import imagelabs_sdk
from imagelabs_sdk import __main__
from tests.cli.conftest import PROGRAM, run_python


def test_the_package_is_the_command() -> None:
    """`python -m imagelabs_sdk` works where scripts are not on the path."""
    done = subprocess.run([*PROGRAM, "--version"], capture_output=True, text=True, check=True)
    assert done.stdout == f"imagelabs {imagelabs_sdk.__version__}\n"


def test_the_module_runs_as_main(monkeypatch: pytest.MonkeyPatch) -> None:
    """As above, within the process that measures coverage."""
    monkeypatch.setattr(sys, "argv", ["imagelabs", "--version"])
    monkeypatch.delitem(sys.modules, "imagelabs_sdk.__main__")
    with pytest.raises(SystemExit) as caught:
        runpy.run_module("imagelabs_sdk", run_name="__main__")
    assert not caught.value.code


@pytest.mark.parametrize("missing", ["click", "rich"])
def test_without_its_extra_the_command_names_the_remedy(
    missing: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In one line: a traceback would look like a bug of ours."""
    code = (
        f"import sys; sys.modules['{missing}'] = None; import imagelabs_sdk.__main__ as m; m.main()"
    )
    line = f'imagelabs: {missing} is not installed: pip install "imagelabs_sdk[cli]"'
    done = run_python(code)
    assert (done.returncode, done.stdout, done.stderr) == (1, "", line + "\n")
    for name in [name for name in sys.modules if name.partition(".")[0] == missing]:
        monkeypatch.setitem(sys.modules, name, None)
    forget_rooms(monkeypatch)
    with pytest.raises(SystemExit, match=re.escape(line)):
        __main__.main()


def test_another_missing_module_is_not_blamed_on_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    """The remedy would not help."""
    monkeypatch.setitem(sys.modules, "attrs", None)
    forget_rooms(monkeypatch)
    with pytest.raises(ImportError, match="attrs"):
        __main__.main()


def forget_rooms(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the rooms of the command be imported again."""
    for name in [name for name in sys.modules if name.startswith("imagelabs_sdk.cli.")]:
        monkeypatch.delitem(sys.modules, name)
