"""``vit-ratio-opt report``: print or write the results of studies."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from optuna.study import Study
from rich.console import Console

from vit_ratio_opt.cli.command import Panel, option
from vit_ratio_opt.cli.config import load_config
from vit_ratio_opt.cli.options import StorageOption, StudyNamesOption
from vit_ratio_opt.errors import InputError
from vit_ratio_opt.records.loading import load_studies
from vit_ratio_opt.records.snapshot import snapshot
from vit_ratio_opt.records.study import record_of
from vit_ratio_opt.report.rows import build_report, group_studies
from vit_ratio_opt.report.sentences import answer_sentences
from vit_ratio_opt.report.terminal import front_table, results_table, trials_table
from vit_ratio_opt.report.trial_rows import timing_split, trial_rows
from vit_ratio_opt.runs.storage import open_storage
from vit_ratio_opt.runs.storage_url import DEFAULT_STORAGE, database_files
from vit_ratio_opt.utils.files import check_outputs, is_plain, write_json, write_text
from vit_ratio_opt.utils.text import csv_text, shorten, strip_escapes

__all__ = ["ReportOptions", "print_report", "report"]


@dataclass(frozen=True, kw_only=True)
class ReportOptions:
    """Options of ``vit-ratio-opt report``."""

    storage: StorageOption = DEFAULT_STORAGE
    study_name: StudyNamesOption = None
    html: Annotated[
        Path | None,
        option(Panel.OUTPUT, "File for one HTML page with figures. The page needs no network."),
    ] = None
    markdown: Annotated[
        Path | None, option(Panel.OUTPUT, "File for the sentences and tables as Markdown.")
    ] = None
    csv: Annotated[Path | None, option(Panel.OUTPUT, "File for all trials as CSV.")] = None
    json: Annotated[
        Path | None,
        option(
            Panel.OUTPUT,
            "File for the rows of the results table as JSON. All studies must share one dense "
            "model.",
        ),
    ] = None
    toml: Annotated[
        Path | None,
        option(
            Panel.OUTPUT,
            "File for the options of one search as TOML. `search --config FILE` repeats it.",
        ),
    ] = None


def report(options: ReportOptions) -> None:
    """Print the results of studies: dense, fixed ratio and searched; every trial; time spent.

    With --html, --markdown, --csv, --json or --toml, write files instead. A file can compare
    several studies.
    """
    outputs = (options.html, options.markdown, options.csv, options.json, options.toml)
    written = [path for path in outputs if path is not None]
    check_outputs(written, database_files(options.storage))
    loaded = load_studies(open_storage(options.storage, must_exist=True), options.study_name or ())
    studies = [snapshot(study) for study in loaded]
    console = Console(markup=False, highlight=False)
    if not written:
        _print_studies(studies, console)
        return
    _write_files(studies, options)
    for path in filter(is_plain, written):  # a pipe's reader expects the content and nothing else
        console.print(strip_escapes(f"written to {path}"), soft_wrap=True)


def _write_files(studies: Sequence[Study], options: ReportOptions) -> None:
    """Write the files that the options ask for.

    Raises:
        InputError: The studies have no such file, or it cannot be written.
    """
    if options.toml is not None:
        write_text(_config_of(studies), options.toml)
    if options.json is not None:
        write_json(build_report(studies), options.json)
    if options.csv is not None:
        rows = [row for study in studies for row in trial_rows(study)]
        write_text(csv_text(rows), options.csv)
    if options.html is None and options.markdown is None:
        return
    from vit_ratio_opt.report.html import html_page  # plotly takes a second to import
    from vit_ratio_opt.report.markdown import markdown_page

    if options.html is not None:
        write_text(html_page(studies, options.storage), options.html)
    if options.markdown is not None:
        write_text(markdown_page(studies), options.markdown)


def _config_of(studies: Sequence[Study]) -> str:
    """Return the options of a search as TOML.

    Raises:
        InputError: There are several studies, or the study is not one of ``search``.
    """
    if len(studies) != 1:
        raise InputError(
            f"--toml takes the options of one study, but there are {len(studies)}: give one "
            "--study-name."
        )
    config = load_config(studies[0])
    if config is None:
        raise InputError(
            f"Study {studies[0].study_name!r} was not started by `vit-ratio-opt search`, so it "
            "has no options for --toml."
        )
    return config


def _print_studies(studies: Sequence[Study], console: Console) -> None:
    """Print trials, answers and the results table of each group of comparable studies."""
    for group in group_studies(studies):
        for study in group:
            console.print(trials_table(study))
            console.print()
            for sentence in answer_sentences(study):
                console.print(strip_escapes(sentence))
            if load_config(study) is not None:
                console.print("Its options: --toml FILE writes them, search --config takes them.")
        print_report(group, None, console)


def print_report(
    studies: Sequence[Study], output: Path | None = None, console: Console | None = None
) -> None:
    """Print the results table of studies and their time split.

    Args:
        studies: Studies of one dense model.
        output: File for the rows as JSON; None for no file.
        console: Console to print to; None for standard output.
    """
    console = console or Console(markup=False, highlight=False)
    studies = [snapshot(study) for study in studies]
    built = build_report(studies)
    for front in filter(None, map(front_table, studies)):
        console.print()
        console.print(front)
    console.print()
    console.print(results_table(built))
    console.print()
    if "dense_full_test_accuracy" in built:
        metric = record_of(studies[0]).metric
        console.print(
            "Ratios were chosen on one half of the test split and are reported on the other; "
            f"dense on the full test split: {metric.text(built['dense_full_test_accuracy'])}.",
            soft_wrap=True,
        )
    for study in studies:
        split = timing_split(study)
        if split:
            shares = ", ".join(f"{name} {100 * share:.1f} %" for name, share in split.items())
            console.print(f"time of {shorten(study.study_name)!r}: {shares}", soft_wrap=True)
    if output is not None:
        write_json(built, output)
        console.print(strip_escapes(f"rows written to {output}"), soft_wrap=True)
