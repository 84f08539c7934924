"""Tables of the labels of image files: ``train.csv``, ``val.csv``, ``test.csv``."""

from __future__ import annotations

import csv
import logging
import math
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePath
from typing import Any

from vit_ratio_opt.data.folders import find_split_paths, name_some
from vit_ratio_opt.data.options import NO_LABELS_HINT, LoadOptions
from vit_ratio_opt.errors import InputError

__all__ = ["Table", "label_columns", "read_csv_tables"]

Table = dict[str, Any]
"""The label of each image file, in the order of the table.

It is a class; the sorted classes of an image where one column has all of them; a number for each
column of several; or, for features, None if images have no labels.
"""

_LARGEST = 3.4e38  # of float32
_SHOWN = 5
_YES_AND_NO = {"true": 1.0, "false": 0.0}

_logger = logging.getLogger(f"optuna.{__name__}")


def label_columns(options: LoadOptions) -> tuple[str, ...]:
    """Return the columns that have labels."""
    return options.label_keys or ("label",)


def read_csv_tables(root: Path, options: LoadOptions | None = None) -> dict[str, Table]:
    """Return the label of each image file that ``train.csv``, ``val.csv``, ``test.csv`` name.

    A row that is there twice counts once.

    Args:
        root: Folder with any of the three tables. Each has a column of file names, below
            ``root/images``, and columns of labels.
        options: Name the columns, ``filename`` and ``label`` by default, and the task.

    Returns:
        For each split, labels by file name, in the order of the table.

    Raises:
        InputError: A table cannot be read, its columns have other names, a value is out of range,
            or a row names no file, one outside of ``root/images``, or one that has another label
            elsewhere.
    """
    options = options or LoadOptions()
    tables: dict[str, Table] = {}
    known: Table = {}
    twice = []
    for split, path in find_split_paths(root, ".csv").items():
        table = tables[split] = {}
        for line, name, cells in _rows(path, options):
            where = f"{path}, line {line}:"
            parts = PurePath(name)
            if parts.is_absolute() or ".." in parts.parts:
                raise InputError(f"{where} {name!r:.200} is not below {root / 'images'}.")
            label = _parse(cells, options, f"{where} of {name!r:.200},")
            if known.setdefault(name, label) != label and None not in (label, known[name]):
                raise InputError(
                    f"{where} {name!r:.200} has the label {label!r:.80}, but elsewhere "
                    f"{known[name]!r:.80}."
                )
            if name in table:
                twice.append(f"{name} (line {line})")
            table[name] = label
            if not (root / "images" / name).is_file():
                raise InputError(
                    f"{root}: a .csv file names {root / 'images' / name}, which is not there."
                )
    if twice:
        _logger.warning(
            f"{len(twice)} row(s) of the .csv files of {root} are there twice and count once: "
            f"{name_some(twice)}."
        )
    if not known:
        raise InputError(f"{root}: {_must_have(options)}")
    tables = {split: table for split, table in tables.items() if table}
    return _keep_common_classes(root, tables) if options.task == "features" else tables


def _keep_common_classes(root: Path, tables: dict[str, Table]) -> dict[str, Table]:
    """Return tables without labels, unless all images have one and classes fit all tables.

    They fit if all tables have the same classes, or no class in common.
    """
    classes = [set(table.values()) for table in tables.values()]
    every = set().union(*classes)
    if every == {None}:
        return tables
    are_same = all(part == classes[0] for part in classes)
    if None in every:
        why = "some rows have no label"
    elif not are_same and len(every) < sum(map(len, classes)):
        why = "the tables have only some classes in common"
    else:
        return tables
    _logger.warning(f"{root}: {why}, so the labels of the .csv files are not used.")
    return {split: dict.fromkeys(table) for split, table in tables.items()}


def _needed_columns(options: LoadOptions) -> list[str]:
    has_labels = options.task != "features" or options.label_keys
    return [options.image_key or "filename", *(label_columns(options) if has_labels else ())]


def _must_have(options: LoadOptions) -> str:
    columns = _needed_columns(options)
    shown = " and ".join(f"`{column}`" for column in columns[:_SHOWN])
    more = ", ..." if len(columns) > _SHOWN else ""
    return f"the .csv files must have rows with {shown}{more}."


def _rows(path: Path, options: LoadOptions) -> Iterator[tuple[int, str, list[str]]]:
    """Yield line, file name and the cells of the label columns of each row."""
    columns = _needed_columns(options)
    has_one_class = options.task in ("single-label", "features")
    is_usual = label_columns(options) == ("label",) and has_one_class
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            table = csv.DictReader(file)
            _check_header(path, list(table.fieldnames or ()), columns, options)
            if len(columns) == 1 and "label" in (table.fieldnames or ()):
                columns.append("label")  # kept for reports
            for row in table:
                name, *cells = (row.get(column) for column in columns)
                where = f"{path}, line {table.line_num}:"
                may_be_empty = options.label_separator is not None or options.task == "features"
                if not name or any(cell is None or not (cell or may_be_empty) for cell in cells):
                    raise InputError(f"{where} {_must_have(options)}")
                if not is_usual and any(row.get(None) or ()):
                    raise InputError(
                        f"{where} it has more cells than the first line has columns: put cells "
                        "with commas into double quotes."
                    )
                yield table.line_num, name, [cell or "" for cell in cells]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{path} cannot be read as a table in UTF-8: {error}.") from None


def _check_header(
    path: Path, header: Sequence[str], columns: Sequence[str], options: LoadOptions
) -> None:
    """Refuse a table without one of the columns, or with two of one name."""
    for column in columns:
        if header.count(column) != 1 and header:
            count = header.count(column) or "no"
            is_usual = column == "label" and not options.label_keys
            hint = NO_LABELS_HINT if is_usual and options.task == "single-label" else ""
            raise InputError(
                f"{path} has {count} column{'s'[: count == 2]} {column!r:.80}, only "
                f"{list(header[:_SHOWN])!r:.200}: {_must_have(options)} Other columns are named "
                f"by `image_key` (--image-column) and `label_key` (--label-columns).{hint}"
            )


def _parse(cells: Sequence[str], options: LoadOptions, where: str) -> Any:
    """Return the label of a row, see :data:`Table`."""
    if options.task == "single-label":
        return cells[0]
    if options.task == "features":
        return (cells[0] or None) if cells else None
    if options.label_separator is not None:
        names = (part.strip() for part in cells[0].split(options.label_separator))
        return tuple(sorted({name for name in names if name}))
    columns = zip(label_columns(options), cells, strict=True)
    return tuple(_number(column, cell.strip(), options, where) for column, cell in columns)


def _number(column: str, cell: str, options: LoadOptions, where: str) -> float:
    """Return the number of a cell: 0 or 1 for several labels, finite for a regression."""
    is_flag = options.task == "multi-label"
    try:
        value = _YES_AND_NO[cell.lower()] if is_flag and not cell[:1].isdigit() else float(cell)
    except (KeyError, ValueError):
        value = math.nan
    if is_flag and value not in (0, 1):
        hint = "" if len(label_columns(options)) > 1 else (
            " Give `label_separator` (--label-separator) if the column has names of classes."
        )  # fmt: skip
        raise InputError(f"{where} {column!r:.80} is {cell!r:.80}, but must be 0 or 1.{hint}")
    if not abs(value) < _LARGEST:
        raise InputError(f"{where} {column!r:.80} is {cell!r:.80}, but must be a finite number.")
    return value
