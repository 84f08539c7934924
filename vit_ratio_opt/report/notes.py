"""Notes of studies and trials in Markdown, for optuna-dashboard."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

from vit_ratio_opt.records.labels import precision_text
from vit_ratio_opt.records.loading import baseline_of
from vit_ratio_opt.records.snapshot import snapshot
from vit_ratio_opt.records.study import StudyRecord, record_of
from vit_ratio_opt.records.trial import TrialRecord
from vit_ratio_opt.records.trials import (
    accuracy_of,
    block_rows,
    finished_trials,
    has_tolerance,
    reports_of,
)
from vit_ratio_opt.report.cells import frontier_table, results_cells
from vit_ratio_opt.report.commands import resume_command, storage_url
from vit_ratio_opt.report.markdown import code, code_block, markdown_table
from vit_ratio_opt.report.sentences import summary
from vit_ratio_opt.search.sampler import PlanSampler
from vit_ratio_opt.space.pairs import RatioPair
from vit_ratio_opt.utils.text import escape_markdown, shorten

__all__ = ["study_note", "trial_note"]

_SPARKS = "▁▂▃▄▅▆▇█"
_MOST_SPARKS = 40


def study_note(study: Study, others: Sequence[Study] = (), *, n_trials: int | None = None) -> str:
    """Return the note of a study in Markdown: answer, aim, progress, the next pair and why.

    Args:
        study: The study, with its own sampler, which proposes the next pair.
        others: Studies of one fixed ratio, one of which may be its baseline.
        n_trials: Number of trained trials at the end of the search; None if unknown.
    """
    study = snapshot(study)
    baseline = baseline_of(study, others)
    group = [study] if baseline is None else [baseline, study]
    aim, *found = (escape_markdown(sentence) for sentence in summary(study, group))
    done, trials = len(finished_trials(study)), study.get_trials(deepcopy=False)
    count = f"{done} of {n_trials}" if n_trials is not None else f"{done}"
    states = {state: sum(trial.state == state for trial in trials) for state in TrialState}
    command = resume_command(study, storage_url(study))
    resume = "run the script that created the study again."
    if command is not None:
        resume = f"run this, here or on another machine:\n\n{code_block(command)}"
    front = frontier_table(study)
    parts = [
        "\n\n".join([f"**{found[0]}**", *found[1:], aim]),
        markdown_table(results_cells(group)),
        *([] if front is None else ["**Frontier**:", markdown_table(front.cells), front.note]),
        f"**Progress**: {count} trials are trained, {states[TrialState.RUNNING]} running, "
        f"{states[TrialState.FAIL]} failed.",
        *_precision(record_of(study)),
        f"**Next**: {_next(study)}",
        f"**Resume**: {resume}",
    ]
    return "\n\n".join(parts)


def trial_note(study: Study, trial: FrozenTrial) -> str:
    """Return the note of a trial in Markdown: ratios, parent, training, blocks."""
    study = snapshot(study)  # several values of its record are needed
    record, known = record_of(study), TrialRecord.read(trial)
    parts = [_headline(record, known, trial)]
    over = next((f"{v:+.4g}" for v in trial.constraints.values() if v > 0), None)
    if over is not None:
        parts.append(f"Over the limit by {over}, so it cannot be the best.")
    training = _training(study, trial, known)
    if training is not None:
        parts.append(training)
    if known.parent_trial is not None:
        parent = known.parent_trial
        start = "the dense model" if parent == "dense" else f"trial {parent}"
        text = f"Pruned from {start}"
        if parent != "dense" and known.total_epochs is not None:
            text += f", {known.total_epochs} epochs with those before"
        text += "" if known.seed is None else f", seed {known.seed}"
        resumed = known.resumed_from or {}
        if {"epoch", "trial"} <= resumed.keys():
            text += f"; resumed from epoch {resumed['epoch']} of trial {resumed['trial']}"
        parts.append(f"{text}.")
    if known.failure is not None:
        parts.append(f"Failed: {code(known.failure)}")
    blocks = block_rows(record.dense, trial)
    if blocks:
        headings = ["block", "heads x dimensions", "neurons"]
        headings += ["MHSA tokens", "FFN tokens"] if "dense_tokens" in blocks[0] else []
        parts.append(markdown_table((headings, [_block_cells(row) for row in blocks])))
    return "\n\n".join(parts)


def _headline(record: StudyRecord, known: TrialRecord, trial: FrozenTrial) -> str:
    """Return the parameters of a trial and what they leave of the dense model."""
    shown = ", ".join(f"{name} {_parameter(name, v)}" for name, v in trial.params.items())
    left = []
    if known.macs_ratio is not None:
        left.append(f"{100 * known.macs_ratio:.2f} % of the FLOPs")
    if known.params is not None and record.dense.params:
        left.append(f"{100 * known.params / record.dense.params:.2f} % of the parameters")
    if record.cost.name not in ("macs", "params") and known.cost_ratio is not None:
        predicted = " (predicted)" if record.latency is not None else ""
        left.append(f"{100 * known.cost_ratio:.2f} % of the {record.cost.word}{predicted}")
    text = f"**{escape_markdown(shown) or 'no ratios yet'}**"
    return f"{text}: {escape_markdown(', '.join(left))}" if left else text


def _precision(record: StudyRecord) -> list[str]:
    """Return why models are trained and evaluated in their precisions, where that was measured."""
    settings, speedups = record.optional_settings, record.bfloat16_speedup
    if settings is None or settings.precision is None or not speedups:
        return []
    training = settings.training_precision or settings.precision
    text = precision_text(settings.precision, training, speedups)
    return [f"**Precision**: {escape_markdown(text)}"]


def _next(study: Study) -> str:
    sampler = study.sampler
    if not isinstance(sampler, PlanSampler):
        return "the pair that its sampler proposes."
    proposal = sampler.next_proposal(study)
    if proposal.pair is None:
        return f"nothing, {proposal.why}."
    first, second = proposal.pair
    return f"MHSA ratio {first:.3f} and FFN ratio {second:.3f}: {proposal.why}."


def _training(study: Study, trial: FrozenTrial, known: TrialRecord) -> str | None:
    """Return the training in one line; None where nothing about it is recorded."""
    record, accuracy = record_of(study), accuracy_of(trial, study)
    metric, dense, pruned = record.metric, record.dense.val_accuracy, known.accuracy_pruned
    reported = [v for _, v in sorted(reports_of(trial).items()) if math.isfinite(v)]
    if known.epochs == 0:  # left out: the reports are for Optuna's pruners
        reported = []
    elif has_tolerance(study):
        reported = [] if dense is None else [metric.after_loss(dense, v) for v in reported]
    values = [] if dense is None else [f"{metric.text(dense)} dense"]
    values += [] if pruned is None else [f"{metric.text(pruned)} pruned"]
    if accuracy is not None and (reported or pruned is None):
        after = f" after {len(reported)} epochs" if reported else ""
        values.append(f"{metric.text(accuracy)}{after}")
        points = reported if pruned is None else [pruned, *reported]
        values[-1] += f" {_sparkline(points)}" if len(reported) > 1 else ""
    if accuracy is None and pruned is None:
        return None
    parts = [f"{metric.title}: {', '.join(values)}"]
    losses = known.losses
    if losses:
        curve = f" → {losses[-1]:.3f} {_sparkline(losses)}" if len(losses) > 1 else ""
        parts.append(f"loss {losses[0]:.3f}{curve}")
    if known.seconds is not None:
        parts.append(f"{known.seconds:.1f} s")
    return f"{'; '.join(parts)}."


def _parameter(name: str, value: object) -> str:
    """Return the value of a parameter: a ratio with three digits after the point."""
    if not isinstance(value, (int, float)) or not abs(value) < 1e9:
        return shorten(value, 20)
    return f"{value:.3f}" if name in RatioPair._fields else f"{value:.3g}"


def _block_cells(row: Mapping[str, int]) -> list[str]:
    heads = "{heads} x {head_dim}, before {dense_heads} x {dense_head_dim}"
    templates = ["{block}", heads, "{neurons} of {dense_neurons}"]
    if "dense_tokens" in row:
        templates += ["{mhsa_tokens} of {dense_tokens}", "{ffn_tokens} of {dense_tokens}"]
    return [template.format(**row) for template in templates]


def _sparkline(values: Sequence[float]) -> str:
    """Return at most forty of the values as bars."""
    step = -(-len(values) // _MOST_SPARKS)
    shown = list(values)[::step]
    low, high = min(shown), max(shown)
    scale = (len(_SPARKS) - 1) / (high - low) if high > low else 0.0
    return "".join(_SPARKS[round((value - low) * scale)] for value in shown)
