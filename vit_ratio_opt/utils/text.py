"""Format untrusted text for a terminal, Markdown and CSV."""

from __future__ import annotations

import csv
import io
import re
import unicodedata
from collections.abc import Mapping, Sequence
from typing import Any

__all__ = ["csv_text", "escape_markdown", "strip_escapes", "shorten"]

# ESC [ ... letter, ESC ] ... BEL or ESC \, and their forms of one character (ECMA-48).
_SEQUENCES = re.compile(
    r"(?:\x1b\[|\x9b)[0-?]*[ -/]*[@-~]?"
    r"|(?:\x1b[\]PX^_]|[\x9d\x90\x98\x9e\x9f])[^\x07\x1b\x9c\n]*(?:\x07|\x1b\\|\x9c)?"
    r"|\x1b[ -/]*[0-~]?"
)
# Control, formatting (bidirectional, zero-width) and surrogate characters.
_ACTIVE = ("Cc", "Cf", "Cs", "Zl", "Zp")
_JOINER = "\u200d"  # of emoji
# A cell with such a beginning is a formula to a spreadsheet, unless the whole cell is a number.
_FORMULA = ("=", "+", "-", "@", "\t", "\r")
_NUMBER = re.compile(r"[+-]?\d+(\.\d*)?(e[+-]?\d+)?", re.ASCII | re.IGNORECASE)
_MARKDOWN = re.compile(r"([\\`*_\[\]<>&|#~$])")
# GitHub turns bare ones into links.
_LINK = re.compile(r"\b(https?|ftp|mailto|www)([.:])", re.IGNORECASE)


def strip_escapes(text: object) -> str:
    """Return ``text`` without escape sequences and characters that act on the text around them.

    Line breaks and tabs stay.
    """
    shown = _SEQUENCES.sub("", str(text))
    if shown.isascii() and shown.isprintable():
        return shown
    return "".join(
        character
        for character in shown
        if character in "\n\t" + _JOINER or unicodedata.category(character) not in _ACTIVE
    )


def shorten(text: object, most: int = 80) -> str:
    """Return ``text`` as one plain line of at most ``most`` characters; longer ones end in "…"."""
    line = " ".join(strip_escapes(str(text)[: 20 * most]).split())
    return line if len(line) <= most else f"{line[: most - 1]}…"


def escape_markdown(text: str) -> str:
    """Return text that Markdown and HTML show as it is."""
    escaped = _MARKDOWN.sub(r"\\\1", " ".join(strip_escapes(text).split()))
    return _LINK.sub(r"\1\\\2", escaped)


def csv_text(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return rows of the same columns as CSV with a header line; without rows an empty text.

    Text that a spreadsheet would take for a formula gets an apostrophe in front.
    """
    text = io.StringIO()
    if rows:
        writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows({name: _cell(value) for name, value in row.items()} for row in rows)
    return text.getvalue()


def _cell(value: Any) -> Any:
    if value is None or isinstance(value, (bool, int, float)):
        return value
    cell = strip_escapes(value).replace("\n", " ")
    # A spreadsheet may read full-width signs as plain ones.
    if not unicodedata.normalize("NFKC", cell).lstrip(" ").startswith(_FORMULA):
        return cell
    return cell if _NUMBER.fullmatch(cell) else f"'{cell}"
