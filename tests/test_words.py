"""The words of the code are the field's: the glossary in ARCHITECTURE.md has them."""

import ast
import re
from pathlib import Path

import pytest

import imagelabs_sdk

ROOT = Path(imagelabs_sdk.__file__).parent
NOT_OURS = {
    "look": "poll",
    "looks": "polls",
    "picture": "image",
    "pictures": "images",
    "wiring": "context",
    "carrying": "attach_job",
    "weather": "service_health",
    "errand": "options",
    "farewell": "unfinished_message",
    "patience": "give_up_after",
    "shelf": "cache",
}
"""Words that an identifier must not have, and what to write instead."""


def identifiers(tree: ast.AST) -> set[str]:
    """Return every name that a file defines: classes, functions, arguments, variables."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            found.add(node.name)
        elif isinstance(node, ast.arg):
            found.add(node.arg)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            found.add(node.id)
    return found


def words(name: str) -> set[str]:
    return {word.lower() for word in re.findall(r"[A-Z]?[a-z]+|[A-Z]+", name)}


@pytest.mark.parametrize("path", sorted(ROOT.rglob("*.py")), ids=lambda p: str(p.relative_to(ROOT)))
def test_a_name_uses_the_words_of_the_glossary(path: Path) -> None:
    """A reader who knows Python and HTTP never has to guess what a name means."""
    names = identifiers(ast.parse(path.read_text(encoding="utf-8")))
    wrong = {name: NOT_OURS[w] for name in names for w in words(name) & NOT_OURS.keys()}
    assert wrong == {}
