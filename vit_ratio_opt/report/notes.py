"""Notes of studies and trials in Markdown, for optuna-dashboard."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import optuna
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

from vit_ratio_opt.records.snapshot import snapshot
from vit_ratio_opt.records.trials import (
    accuracy_of,
    attribute,
    baseline_of,
    block_rows,
    cost_of,
    finished_trials,
)
from vit_ratio_opt.report.cells import results_cells
from vit_ratio_opt.report.commands import resume_command, storage_url
from vit_ratio_opt.report.markdown import code, code_block, markdown_table
from vit_ratio_opt.report.sentences import summary
from vit_ratio_opt.search.sampler import PlanSampler
from vit_ratio_opt.utils.text import escape_markdown, short

__all__ = ["study_note", "trial_note"]

_SPARKS = "▁▂▃▄▅▆▇█"
# Attributes of a trial that its note tells.
_NOTED = (
    *("macs_ratio", "params", "cost_ratio", "accuracy_pruned", "parent_trial", "resumed_from"),
    *("seed", "failure"),
)


def study_note(study: Study, others: Sequence[Study] = (), *, n_trials: int | None = None) -> str:
    """Return the note of the study in Markdown: answer, aim, progress, what comes next and why.

    Args:
        study: With its own sampler, which says what comes next.
        others: Studies of one fixed ratio, one of which may be its baseline.
        n_trials: Trained trials that the search is to have.
    """
    study = snapshot(study)
    baseline = baseline_of(study, others)
    group = [study] if baseline is None else [baseline, study]
    looked_for, *found = (escape_markdown(sentence) for sentence in summary(study, group))
    done, trials = len(finished_trials(study)), study.get_trials(deepcopy=False)
    count = f"{done} of {n_trials}" if n_trials is not None else f"{done}"
    states = {state: sum(trial.state == state for trial in trials) for state in TrialState}
    command = resume_command(study, storage_url(study))
    parts = [
        "\n\n".join([f"**{found[0]}**", *found[1:], looked_for]),
        markdown_table(*results_cells(group)),
        f"**Progress**: {count} trials are trained, {states[TrialState.RUNNING]} running, "
        f"{states[TrialState.FAIL]} failed.",
        f"**Next**: {_next(study)}",
        f"**Go on**, here or on another machine:\n\n{code_block(command)}",
    ]
    return "\n\n".join(parts)


def trial_note(study: Study, trial: FrozenTrial) -> str:
    """A trial's note in Markdown: its ratios, where it came from, its training, its blocks."""
    dense = study.user_attrs["dense"]
    known = {name: attribute(trial, name) for name in _NOTED}
    ratios = ", ".join(f"{name} {_three_digits(value)}" for name, value in trial.params.items())
    parts = [f"**{escape_markdown(ratios) or 'no ratios yet'}**"]
    if known["macs_ratio"] is not None:
        parts[0] += f": {100 * known['macs_ratio']:.2f} % of the FLOPs"
    if known["params"] is not None:
        parts[0] += f", {100 * known['params'] / dense['params']:.2f} % of the parameters"
    if cost_of(study) == "latency" and known["cost_ratio"] is not None:
        parts[0] += f", {100 * known['cost_ratio']:.2f} % of the latency (predicted)"
    limit = next((f"{v:+.4g}" for v in trial.constraints.values() if v > 0), None)
    if limit is not None:
        parts.append(f"Over the limit by {limit}, so it cannot be the best.")
    if known["accuracy_pruned"] is not None:
        parts.append(_training(study, trial))
    parent, resumed = known["parent_trial"], known["resumed_from"]
    if parent is not None:
        start = "the dense model" if parent == "dense" else f"trial {parent}"
        text = f"Pruned from {start}, seed {known['seed']}"
        if resumed is not None and {"epoch", "trial"} <= resumed.keys():
            text += f"; went on from epoch {resumed['epoch']} of trial {resumed['trial']}"
        parts.append(f"{text}.")
    if known["failure"] is not None:
        parts.append(f"Failed: {code(known['failure'])}")
    blocks = block_rows(dense, trial)
    if blocks:
        headings = ["block", "heads x dimensions", "neurons"]
        headings += ["MHSA tokens", "FFN tokens"] if "dense_tokens" in blocks[0] else []
        parts.append(markdown_table(headings, [_block_cells(row) for row in blocks]))
    return "\n\n".join(parts)


def _next(study: Study) -> str:
    sampler = study.sampler
    if not isinstance(sampler, PlanSampler):
        return "what its sampler proposes."
    proposal = sampler.next_proposal(study)
    if proposal.pair is None:
        return f"nothing, {proposal.why}."
    first, second = proposal.pair
    return f"MHSA ratio {first:.3f} and FFN ratio {second:.3f}: {proposal.why}."


def _training(study: Study, trial: FrozenTrial) -> str:
    """The training in one line."""
    dense = study.user_attrs["dense"]["val_accuracy"]
    pruned = attribute(trial, "accuracy_pruned")
    text = f"Accuracy: {dense:.2f} % dense, {pruned:.2f} % pruned"
    reported = [v for _, v in sorted(trial.intermediate_values.items()) if math.isfinite(v)]
    if study.direction == optuna.study.StudyDirection.MINIMIZE:
        reported = [dense - drop for drop in reported]
    accuracy = accuracy_of(trial, study)
    if reported and accuracy is not None:
        text += f", {accuracy:.2f} % after {len(reported)} epochs"
        if len(reported) > 1:
            text += f" {_sparkline([pruned, *reported])}"
    losses, seconds = attribute(trial, "losses"), attribute(trial, "seconds")
    if losses:
        text += f"; loss {losses[0]:.3f}"
        text += f" → {losses[-1]:.3f} {_sparkline(losses)}" if len(losses) > 1 else ""
    if seconds is not None:
        text += f"; {seconds:.1f} s"
    return f"{text}."


def _three_digits(value: object) -> str:
    is_number = isinstance(value, (int, float)) and abs(value) < 1e9
    return f"{value:.3f}" if is_number else short(value, 20)


def _block_cells(row: Mapping[str, int]) -> list[str]:
    heads = "{heads} x {head_dim}, before {dense_heads} x {dense_head_dim}"
    templates = ["{block}", heads, "{neurons} of {dense_neurons}"]
    if "dense_tokens" in row:
        templates += ["{mhsa_tokens} of {dense_tokens}", "{ffn_tokens} of {dense_tokens}"]
    return [template.format(**row) for template in templates]


def _sparkline(values: Sequence[float]) -> str:
    """At most forty of the values as bars."""
    step = -(-len(values) // 40)
    shown = list(values)[::step]
    low, high = min(shown), max(shown)
    scale = (len(_SPARKS) - 1) / (high - low) if high > low else 0.0
    return "".join(_SPARKS[round((value - low) * scale)] for value in shown)
