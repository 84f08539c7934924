"""Describe the start of a search and each trial in a line of text."""

from __future__ import annotations

from collections.abc import Iterator

from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

from vit_ratio_opt.records.labels import precision_text
from vit_ratio_opt.records.study import record_of
from vit_ratio_opt.records.trial import TrialRecord
from vit_ratio_opt.records.trials import cost_word, finished_trials
from vit_ratio_opt.runs.task import screened_best

__all__ = ["describe_device", "describe_start", "describe_trial"]


def describe_device(trainer: object) -> Iterator[str]:
    """Yield a line that says on which GPU this process trains, if it does."""
    device = getattr(trainer, "device", None)
    if getattr(device, "type", "cpu") != "cpu":
        yield f"this worker trains on {device}, {getattr(trainer, 'device_name', 'a GPU')}"


def describe_start(study: Study, n_trials: int | None) -> Iterator[str]:
    """Yield lines that say where the search begins, or that it is resumed.

    Args:
        study: The study.
        n_trials: Number of trained trials at the end of the search; None if unknown.
    """
    done = len(finished_trials(study))
    if done:
        of_all = "" if n_trials is None else f" of {n_trials}"
        yield f"resuming {study.study_name!r}: {done}{of_all} trials are done, none repeated"
    if study.get_trials(deepcopy=False):
        return
    record = record_of(study)
    settings, speedups = record.optional_settings, record.bfloat16_speedup
    if settings is not None and settings.precision is not None and speedups:
        training = settings.training_precision or settings.precision
        yield precision_text(settings.precision, training, speedups)
    baseline = study.user_attrs.get("plan", {}).get("baseline")
    if baseline is not None:
        yield f"begins with the fixed ratio {baseline[0]:.3f}, the baseline of this study"
    best = screened_best(study.user_attrs)
    if best is not None:
        seen = len(study.user_attrs["screened"])
        begins = "begins" if baseline is None else "continues"
        yield (
            f"{begins} with mhsa_ratio {best[0]:.3f}, ffn_ratio {best[1]:.3f}: the best of {seen} "
            "pairs before any training"
        )
    path = study.user_attrs.get("path", [])
    if path:
        yield f"begins {_begins(study)} before any training"


def _begins(study: Study) -> str:
    """Return along or with which pairs a search begins."""
    plan, word = study.user_attrs.get("plan", {}), cost_word(study)
    levels = plan.get("levels")
    if levels is None:
        return f"along {len(study.user_attrs['path'])} pairs, the likeliest of their {word}"
    if plan.get("forecast") is not None and len(plan["marks"]) > len(levels):
        return f"with one pair, the likeliest of its {word}"
    return f"with {len(levels)} pairs, the likeliest of their {word}"


def describe_trial(study: Study, trial: FrozenTrial, n_trials: int | None) -> str:
    """Return a line about a trial that has ended.

    Args:
        study: The study of the trial.
        trial: The trial.
        n_trials: Number of trained trials at the end of the search; None if unknown.
    """
    attributes = trial.user_attrs
    ratios = "  ".join(f"{name} {value:.3f}" for name, value in trial.params.items())
    text = f"trial {trial.number:3d}  {ratios}"
    share = attributes.get("macs_ratio")  # unknown before the pair is
    text += "  FLOPs -" if share is None else f"  FLOPs {share:.3f}"
    if "cost_ratio" in attributes:
        text += f"  {cost_word(study)} {attributes['cost_ratio']:.3f}"
    known = TrialRecord.read(trial)
    if known.accuracy_drop is None or known.accuracy is None or known.seconds is None:
        why = f": {attributes['failure']}" if "failure" in attributes else ""
        return f"{text}  {trial.state.name.lower()}{why}"
    limit = "" if trial.state == TrialState.COMPLETE else ", over the tolerance"
    of_all = "" if n_trials is None else f" of {n_trials}"
    metric = record_of(study).metric
    before = "" if known.accuracy_pruned is None else metric.number(known.accuracy_pruned)
    is_left_out = (known.chosen or {}).get("is_trained") is False
    why = "  not trained, as pruning changed no output" if is_left_out else ""
    parent = "" if known.parent_trial in (None, "dense") else f"  from trial {known.parent_trial}"
    return (
        f"{text}  {metric.name} {before} -> {metric.text(known.accuracy)} "
        f"({metric.change(known.accuracy_drop)}{limit})  "
        f"{known.seconds:.1f} s  ({len(finished_trials(study))}{of_all}){parent}{why}"
    )
