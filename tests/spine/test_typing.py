"""What mypy and pyright say of scripts that use the SDK: nothing if right, the line if wrong."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

RIGHT = """
from imagelabs_sdk import ImageLabs, ImageLabsError, ImageRequest

ImageRequest("x")
ImageRequest("x", aspect_ratio="16:9")
ImageRequest("x", width=512, height=512, seed=None, extra_body={"model": "general"})

client = ImageLabs()
image = client.generate("x", width=512, seed=7, timeout=client.deadline(60))
seed: int | None = image.request.seed
again = client.submit(image.request).result(timeout=5.0)
if again.request is not None:
    print(again.request.prompt, again.save("x").name)
try:
    client.generate("x")
except ImageLabsError as error:
    if error.job is not None:
        error.job.result().save("x.png")
    pause: float = error.retry_after or 0.0
    print(error.code, error.delivered == "no", pause, error.task_id)
"""

WRONG = """
from imagelabs_sdk import ImageLabs, ImageRequest

client = ImageLabs()
ImageRequest()  # wrong
ImageRequest("x", widht=512)  # wrong
ImageRequest("x", width="wide")  # wrong
ImageRequest("x", 512)  # wrong
client.generate("x", widht=512)  # wrong
client.generate("x", width="wide")  # wrong
client.generate("x", timeout="soon")  # wrong
client.submit("x", tiling="yes")  # wrong
client.submit("x", widht=512)  # wrong
client.submit("x").request.seed  # wrong
"""


def script_of(source: str, folder: Path) -> Path:
    path = folder / "script.py"
    path.write_text(source, encoding="utf-8")
    return path


def checked(script: Path, *command: str) -> str:
    """What a checker prints."""
    done = subprocess.run(
        [sys.executable, "-m", *command, script.name],
        capture_output=True,
        check=False,
        cwd=script.parent,
        env={**os.environ, "MYPYPATH": str(ROOT)},
        text=True,
    )
    assert done.returncode in (0, 1), done.stdout + done.stderr
    return done.stdout


def lines_by_mypy(script: Path) -> set[int]:
    cache = str(ROOT / ".mypy_cache" / "scripts")
    shown = checked(script, "mypy", "--strict", "--config-file=", "--cache-dir", cache)
    return {int(line) for line in re.findall(r"^script\.py:(\d+): error", shown, re.MULTILINE)}


def lines_by_pyright(script: Path) -> set[int]:
    (script.parent / "pyrightconfig.json").write_text(json.dumps({"extraPaths": [str(ROOT)]}))
    shown = checked(script, "pyright", "--outputjson", "--pythonpath", sys.executable)
    found = json.loads(shown)["generalDiagnostics"]
    return {each["range"]["start"]["line"] + 1 for each in found if each["severity"] == "error"}


@pytest.mark.parametrize("lines_by", [lines_by_mypy, lines_by_pyright])
def test_a_right_script_passes_the_type_checker(
    lines_by: Callable[[Path], set[int]], tmp_path: Path
) -> None:
    """Nobody should need a cast or an ignore to use the SDK."""
    assert lines_by(script_of(RIGHT, tmp_path)) == set()


@pytest.mark.parametrize("lines_by", [lines_by_mypy, lines_by_pyright])
def test_each_wrong_line_is_found_by_the_type_checker(
    lines_by: Callable[[Path], set[int]], tmp_path: Path
) -> None:
    """A misspelt option is found in the editor, before it is found at run time."""
    wrong = {n for n, line in enumerate(WRONG.split("\n"), 1) if line.endswith("# wrong")}
    assert lines_by(script_of(WRONG, tmp_path)) == wrong


@pytest.mark.parametrize("lines_by", [lines_by_mypy, lines_by_pyright])
def test_the_quick_start_passes_the_type_checker(
    lines_by: Callable[[Path], set[int]], tmp_path: Path
) -> None:
    """It is what people copy."""
    page = (ROOT / "docs" / "quickstart.md").read_text(encoding="utf-8")
    found = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    assert len(found) == 3
    assert lines_by(script_of("\n".join(found), tmp_path)) == set()
