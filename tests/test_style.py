"""Texts use the standard terms of STYLE: help, messages, docs, docstrings and comments."""

from __future__ import annotations

import ast
import io
import re
import tokenize
from pathlib import Path

import pytest

from ompaffinity.cli.options import VERBS
from ompaffinity.cli.parse import parse_command_line
from ompaffinity.messages import catalogue
from tests.conftest import ROOT

BANNED_WORDS = (
    # Personification: programs report, read and set; processes start and end.
    "anybody", "believe", "believed", "believes", "birth", "born", "hear", "heard", "hears", "know", "knows", "nobody",
    "said", "say", "says", "somebody", "speak", "speaks", "tell", "tells", "told", "whoever",
    # Archaic or inverted phrases.
    "are to be had", "beyond doubt", "but for what", "cannot be had", "comes of it", "for ever", "is not had",
    "is to be had", "of which none", "off line", "on line", "so wide are", "take it with care", "takes it",
    "there are none such",
    # Words with a standard term: synthetic, export format, exec.
    "becomes the command", "become the command", "invented", "in other tools' words", "in another tool's words",
)  # fmt: skip
BANNED = re.compile(rf"\b({'|'.join(BANNED_WORDS)})\b", re.IGNORECASE)


@pytest.mark.parametrize("arguments", [["--help"], *([verb, "--help"] for verb in VERBS)], ids=lambda words: words[0])
def test_help_has_no_banned_word(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse_command_line(arguments)
    assert BANNED.findall(" ".join(capsys.readouterr().out.split())) == []


def test_the_message_catalogue_has_no_banned_word() -> None:
    assert [
        (template.code, BANNED.findall(template.text)) for template in catalogue() if BANNED.search(template.text)
    ] == []


PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md", "tests/README.md")),
    *sorted((ROOT / "docs").glob("*.md")),
]


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_no_page_has_a_banned_word(path: Path) -> None:
    # "You know" is a person's.
    found = [
        line
        for line in path.read_text().splitlines()
        if BANNED.search(line.replace("you know", "")) and line[:1] != "|"
    ]
    assert found == []


def texts_of(source: str) -> list[tuple[int, str]]:
    """Return the lines and the string constants of a module without its docstrings: error texts are among them."""
    tree = ast.parse(source)
    docstrings = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    return [
        (node.lineno, node.value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docstrings
    ]


@pytest.mark.parametrize("path", sorted((ROOT / "ompaffinity").rglob("*.py")), ids=lambda path: path.stem)
def test_no_text_docstring_or_comment_has_a_banned_word(path: Path) -> None:
    source = path.read_text()
    assert [(line, text) for line, text in texts_of(source) if BANNED.search(text)] == []
    prose = (
        token.string
        for token in tokenize.generate_tokens(io.StringIO(source).readline)
        if token.type in (tokenize.COMMENT, tokenize.STRING)
    )
    assert [text for text in prose if BANNED.search(text)] == []


def prose_of(source: str) -> list[str]:
    """Return the comments, the docstrings and the names of functions of a module, these as words."""
    nodes = [*ast.walk(ast.parse(source))]
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    return [
        *(token.string for token in tokens if token.type == tokenize.COMMENT),
        *(ast.get_docstring(node) or "" for node in nodes if isinstance(node, documented)),
        *(node.name.replace("_", " ") for node in nodes if isinstance(node, ast.FunctionDef)),
    ]


@pytest.mark.parametrize(
    "path",
    [path for room in ("tests", "benchmarks") for path in sorted((ROOT / room).rglob("*.py"))],
    ids=lambda path: f"{path.parent.name}-{path.stem}",
)
def test_no_test_or_benchmark_has_a_banned_word(path: Path) -> None:
    # The words of this file itself are examples.
    prose = [] if path == Path(__file__) else prose_of(path.read_text())
    assert [text for text in prose if BANNED.search(text)] == []


def test_the_prose_of_a_test_has_its_name_docstring_and_comments() -> None:
    source = 'def test_it_hears() -> None:\n    """Nobody."""\n    # Told.\n'
    assert prose_of(source) == ["# Told.", "", "Nobody.", "test it hears"]


def test_error_texts_are_among_the_texts() -> None:
    assert texts_of('"""Doc."""\nraise ValueError(f"nobody is {here}")')[0] == (2, "nobody is ")


@pytest.mark.parametrize("text", ["a CPU that is on line", "Nobody says which rank this is", "so wide are they"])
def test_finds_banned_words(text: str) -> None:
    assert BANNED.search(text)
