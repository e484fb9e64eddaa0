"""Make the images of README and docs: what the built-in engine draws, and a terminal's screen.

python docs/make_images.py        # extras cli, docs, server
"""

import os
import pty
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path

import pyte
from rich.console import Console
from rich.text import Text

from imagelabs_sdk.embedded import embedded_client
from imagelabs_sdk.server.engines.landscape import LandscapeEngine

FOLDER = Path(__file__).parent / "images"
COLUMNS, LINES = 84, 12
COMMAND = 'imagelabs generate "a lighthouse at dusk" --embedded --seed 7 -o lighthouse.png'
PROMPTS = {
    "lighthouse": "a lighthouse at dusk",
    "quickstart": "a windmill in the mountains at dawn",
}


def draw() -> None:
    """Draw the images that the pages show."""
    with embedded_client(LandscapeEngine(duration=0.0)) as client:
        for name, prompt in PROMPTS.items():
            image = client.generate(prompt, width=768, height=512, seed=7, subseed=7)
            image.save(FOLDER / f"{name}.png")


def run_on_terminal(command: str) -> pyte.Screen:
    """Run `command` on a pseudo-terminal; return what is on its screen at the end."""
    screen = pyte.Screen(COLUMNS, LINES)
    stream = pyte.ByteStream(screen)
    parent, child = pty.openpty()
    environment = {**os.environ, "COLUMNS": str(COLUMNS), "TERM": "xterm-256color"}
    words = [sys.executable, "-m", "imagelabs_sdk", *shlex.split(command)[1:]]
    with tempfile.TemporaryDirectory() as folder:
        running = subprocess.Popen(
            words, cwd=folder, stdin=child, stdout=child, stderr=child, env=environment
        )
        os.close(child)
        while True:
            try:
                stream.feed(os.read(parent, 65536))
            except OSError:  # the program has ended
                break
        running.wait()
    os.close(parent)
    return screen


def as_text(screen: pyte.Screen) -> Text:
    """Return the screen with its colours."""
    text = Text()
    for row in range(screen.cursor.y):
        for column in range(COLUMNS):
            cell = screen.buffer[row][column]
            colour = f"#{cell.fg}" if len(cell.fg) == 6 and cell.fg not in ("yellow",) else cell.fg
            style = "" if colour == "default" else colour.replace("brown", "yellow")
            text.append(cell.data, style=style)
        text.append("\n")
    return text


def photograph() -> None:
    """Run the command and keep its screen as an SVG."""
    with open(os.devnull, "w") as nowhere:
        console = Console(record=True, width=COLUMNS, file=nowhere)
        console.print(Text(f"$ {COMMAND}", style="bold"))
        console.print(as_text(run_on_terminal(COMMAND)), end="")
        console.save_svg(str(FOLDER / "terminal.svg"), title="imagelabs")


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    draw()
    photograph()
