"""``vit-ratio-opt frontier``: list the pairs of a frontier, and write the model of one of them."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated

from rich.console import Console

from vit_ratio_opt.cli.command import Panel, check_confidence, option
from vit_ratio_opt.cli.files import check_model_output
from vit_ratio_opt.cli.final import FinalOptions, final
from vit_ratio_opt.cli.options import DeviceOption, PlaceOptions, StudyOptions
from vit_ratio_opt.errors import InputError
from vit_ratio_opt.records.answer import answer_of, trained_trial
from vit_ratio_opt.records.loading import load_studies
from vit_ratio_opt.records.snapshot import snapshot
from vit_ratio_opt.records.study import record_of
from vit_ratio_opt.report.terminal import front_table
from vit_ratio_opt.runs.storage import open_storage
from vit_ratio_opt.search.limits import Tolerance
from vit_ratio_opt.utils.text import strip_escapes

__all__ = ["FrontierOptions", "frontier"]


@dataclass(frozen=True, kw_only=True)
class FrontierOptions(PlaceOptions, StudyOptions):
    """Options of ``vit-ratio-opt frontier``."""

    at: Annotated[
        float | None,
        option(
            Panel.LIMIT,
            "Budget, a share of the dense model's cost in (0, 1]: choose the best pair within it.",
        ),
    ] = None
    at_tolerance: Annotated[
        float | None,
        option(
            Panel.LIMIT,
            "Largest loss of the metric, in its unit: choose the cheapest pair that keeps it.",
        ),
    ] = None
    confidence: Annotated[
        float,
        option(
            Panel.LIMIT,
            "Probability with which the pair must keep the --at-tolerance, in (0.5, 1).",
            callback=check_confidence,
        ),
    ] = Tolerance.confidence
    output: Annotated[
        Path | None,
        option(
            Panel.OUTPUT,
            "Safetensors file for the model of the chosen pair, or else of the knee, as its trial "
            "has trained it. A model card is written beside it.",
        ),
    ] = None
    device: DeviceOption = None


def frontier(options: FrontierOptions) -> None:
    """List the pairs of a study's frontier, or choose one by --at or --at-tolerance.

    The study is one of `search --frontier`. With --output the model of the chosen pair is tested
    and written; `final --trial` trains it longer.
    """
    if options.output is not None:
        check_model_output(options.output)
    if options.at is not None and options.at_tolerance is not None:
        raise InputError("Give --at or --at-tolerance, only one of them.")
    if options.at_tolerance is None and options.confidence != Tolerance.confidence:
        raise InputError(
            f"--confidence {options.confidence:g} is for an --at-tolerance: give one, or leave it "
            "out."
        )
    backend = open_storage(options.storage, must_exist=True)
    (study,) = load_studies(backend, [options.study_name])
    if not record_of(study).has_frontier:
        raise InputError(
            f"Study {options.study_name!r} searches no frontier: `report` shows its answer."
        )
    found = snapshot(study)
    answer = answer_of(found)
    if answer is None:
        trained_trial(study)  # says why there is none
        return
    console = Console(markup=False, highlight=False)
    is_chosen = options.at is not None or options.at_tolerance is not None
    if is_chosen:
        answer = answer.at(
            budget=options.at, tolerance=options.at_tolerance, confidence=options.confidence
        )
        console.print(strip_escapes(str(answer)), soft_wrap=True)
    else:
        console.print(front_table(found, is_whole=True))
    if options.output is None:
        return
    if answer.found is None:
        raise InputError(
            "The answer is the dense model, which is not pruned: give a larger --at-tolerance, or "
            "run more trials."
        )
    final(_final_options(options, answer.found.trial.number))


def _final_options(options: FrontierOptions, trial: int) -> FinalOptions:
    """Return the options of ``final`` that write the model of a trial as it is."""
    names = {field.name for field in fields(FinalOptions)}
    shared = {f.name: getattr(options, f.name) for f in fields(options) if f.name in names}
    return FinalOptions(**shared, trial=trial, epochs=0)
