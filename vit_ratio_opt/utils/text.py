"""Format text: one line of limited length, CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from typing import Any

__all__ = ["csv_text", "short"]


def short(text: object, most: int = 80) -> str:
    """Return ``text`` as one line of at most ``most`` characters; a longer one ends in "…"."""
    line = " ".join(str(text).split())
    return line if len(line) <= most else f"{line[: most - 1]}…"


def csv_text(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return rows that have the same columns as CSV with a header line; no rows give ""."""
    text = io.StringIO()
    if rows:
        writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    return text.getvalue()
