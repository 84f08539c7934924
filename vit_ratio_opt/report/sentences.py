"""Describe a study in sentences."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from optuna.study import Study

from vit_ratio_opt.records.answer import Answer, Candidate, answer_of
from vit_ratio_opt.records.snapshot import snapshot
from vit_ratio_opt.records.trials import (
    baseline_of,
    cost_word,
    finished_trials,
    limit_of,
    tested_accuracy,
)
from vit_ratio_opt.report.rows import (
    answer_row,
    dense_ms,
)
from vit_ratio_opt.utils.text import short

__all__ = ["answer_sentences", "expected", "summary", "with_error"]

# Accuracies of single trainings that a sentence lists.
_MOST_VALUES = 4


def summary(study: Study, studies: Sequence[Study] = ()) -> list[str]:
    """Return the study in sentences: what is looked for, the answer, what that saves.

    Args:
        study: The study.
        studies: Studies among which there may be one of the fixed ratio, for a study that has not
            trained the fixed ratio itself.
    """
    study = snapshot(study)
    settings, dense = study.user_attrs["settings"], study.user_attrs["dense"]
    latency = study.user_attrs.get("latency")
    takes = "" if latency is None else f", and takes {_conditions(latency)}"
    fixed = settings["strategy"] == "fixed"
    ratios = "one fixed ratio of" if fixed else "how much each of"
    looked_for = (
        f"This study looks for {ratios} attention (MHSA) and feed-forward (FFN) to prune from "
        f"{short(settings['model'])} on {short(settings['dataset'])}, with {limit_of(study)}; "
        f"the dense model has {dense['val_accuracy']:.2f} % on validation images and "
        f"needs {dense['macs']:,} FLOPs an image (1 FLOP is 1 multiply-add){takes}."
    )
    answer = answer_of(study)
    sentence, *why = answer_sentences(study)
    if answer is None:
        return [looked_for, sentence]
    return [
        looked_for,
        sentence,
        *_comparison(study, answer, studies),
        *_measurements(study, answer),
        *why,
    ]


def answer_sentences(study: Study) -> list[str]:
    """Return the answer in a sentence, and in another one why Optuna's best trial differs."""
    study = snapshot(study)
    answer, done = answer_of(study), len(finished_trials(study))
    if answer is None and not done:
        return ["There is no answer yet: no trial was trained."]
    if answer is None:
        return [
            f"There is no answer yet: none of {done} trained trials is complete and within the "
            "limit."
        ]
    why = [] if answer.why_not_best is None else [answer.why_not_best]
    found = answer.found
    if found is None:
        return [
            f"The answer is the dense model: after {done} trained trials, no pair keeps the "
            f"tolerance with a probability of {answer.confidence:g} yet.",
            *why,
        ]
    pair = f"MHSA ratio {found.pair[0]:.3f} and FFN ratio {found.pair[1]:.3f}"
    reason = ""
    if study.user_attrs["settings"]["strategy"] == "fixed":
        pair = f"the fixed ratio {found.pair[0]:.3f}"
    if answer.is_baseline:
        pair = f"the fixed ratio {found.pair[0]:.3f}"
        reason = f": {_why_the_baseline(answer)}"
    elif answer.confidence is not None:
        reason = (
            f": the cheapest pair that keeps the tolerance with a probability of "
            f"{answer.confidence:g} or more, its own being {found.probability:.2f}"
        )
    name = cost_word(study)
    return [
        f"The answer is trial {found.trial.number}, {pair}{reason}. It has "
        f"{100 * found.cost_ratio:.1f} % of the {name}, and {expected(found)} validation accuracy "
        f"is expected; {_trainings(found)}.",
        *why,
    ]


def expected(found: Candidate) -> str:
    """Return the posterior mean and its standard error, such as ``95.31 ± 0.42 %``."""
    return f"{with_error(found.accuracy, found.error)} %"


def with_error(accuracy: float, error: float) -> str:
    """Return an accuracy with its standard error, such as ``95.31 ± 0.42``."""
    return f"{accuracy:.2f} ± {error:.2f}"


def _why_the_baseline(answer: Answer) -> str:
    contender = answer.contender
    if contender is None:
        return "no other pair was trained yet"
    trial = contender.trial.number
    if contender.probability <= 0.5:
        return (
            "no other pair is better with a probability above one half (the likeliest, of trial "
            f"{trial}, with {contender.probability:.2f})"
        )
    return (
        f"the likeliest other pair, of trial {trial}, is better with a probability of "
        f"{contender.probability:.2f}, which is a tie, and was trained less often"
    )


def _trainings(found: Candidate) -> str:
    values = [f"{accuracy:.2f}" for accuracy in found.own_accuracies]
    stopped = len(values) - found.trained
    if stopped:
        whole = "once" if found.trained == 1 else f"{found.trained} times"
        return (
            f"the pair was trained {whole} to the end, and {stopped} of its trainings were "
            f"stopped early ({', '.join(values)} %)"
        )
    if len(values) == 1:
        return f"the pair was trained once, with {values[0]} %, so it is not confirmed"
    if len(values) > _MOST_VALUES:
        return (
            f"the pair was trained {len(values)} times, with {found.own_accuracy:.2f} % on average"
        )
    listed = f"{', '.join(values[:-1])} and {values[-1]} %"
    return f"the pair was trained {len(values)} times, with {listed}"


def _comparison(study: Study, answer: Answer, studies: Sequence[Study]) -> list[str]:
    """Return what the answer saves against the fixed ratio, in a sentence."""
    found, baseline = answer.found, answer.baseline
    if study.user_attrs["settings"]["strategy"] == "fixed":
        return ["It is the baseline that a search of both ratios has to beat."]
    if answer.is_baseline:
        return []
    if baseline is not None and baseline.trained == 0:
        return [
            f"The training of the fixed ratio {baseline.pair[0]:.3f} (trial "
            f"{baseline.trial.number}) was stopped early, so there is nothing to compare with."
        ]
    if baseline is not None and found is not None:
        # Of the figures beside it, as a reader would subtract them.
        gain = round(found.accuracy, 2) - round(baseline.accuracy, 2)
        return [
            f"Against the fixed ratio {baseline.pair[0]:.3f} of the same study (trial "
            f"{baseline.trial.number}, {expected(baseline)} expected) that is {gain:+.2f} points, "
            f"and the answer is better with a probability of {found.probability:.2f}."
        ]
    other = baseline_of(study, studies)
    compared = None if other is None else answer_of(other)
    if answer.has_baseline and compared is None:
        return ["The fixed ratio of this study was not trained yet."]
    if other is None or compared is None:
        return ["There is no study of one fixed ratio with this limit to compare with yet."]
    fixed, word = compared.found, cost_word(study)
    if fixed is None:
        share = answer.found.cost_ratio if answer.found is not None else 1.0
        return [
            f"The study of one fixed ratio, {short(other.study_name)}, has the dense model as its "
            f"answer: the answer here needs {share:.3f} times its {word}."
        ]
    share = (1.0 if found is None else found.cost_ratio) / fixed.cost_ratio
    against = (
        f"Against one fixed ratio of {fixed.pair[0]:.3f} (study {short(other.study_name)}, trial "
        f"{fixed.trial.number}, {expected(fixed)} expected)"
    )
    if study.user_attrs["settings"]["tolerance"] is not None:
        return [f"{against} the answer needs {share:.3f} times the {word}."]
    gain = answer.accuracy - compared.accuracy
    return [f"{against} that is {gain:+.2f} points, for {share:.3f} times the {word}."]


def _measurements(study: Study, answer: Answer) -> list[str]:
    """Return what was measured once on test images and of the latency, in sentences."""
    row, sentences = answer_row(study, answer), []
    dense = tested_accuracy(study, None)
    if answer.found is not None and row["test_accuracy"] is not None:
        others = [] if dense is None else [f"the dense model {dense:.2f} %"]
        if answer.baseline is not None and not answer.is_baseline:
            fixed = tested_accuracy(study, answer.baseline.trial)
            others += [] if fixed is None else [f"the fixed ratio {fixed:.2f} %"]
        against = f", {' and '.join(others)}" if others else ""
        sentences.append(
            f"On test images the model of trial {row['trial']} has "
            f"{row['test_accuracy']:.2f} %{against}."
        )
    if "latency_ms" in row and answer.found is not None:
        sentences.append(
            f"Its latency is predicted to be {row['latency_ms']:.2f} ms, "
            f"{100 * row['cost_ratio']:.1f} % of the dense model's."
        )
    if "measured_ms" in row:
        share = 100 * row["measured_ms"] / row["dense_ms"]
        sentences.append(
            f"Measured on {row['measured_on']}, its model takes {row['measured_ms']:.2f} ms and "
            f"the dense model {row['dense_ms']:.2f} ms, {share:.1f} %."
        )
    return sentences


def _conditions(latency: Mapping[str, Any]) -> str:
    """Return the dense model's predicted latency and the error of the prediction."""
    device = short(latency["device"])
    if device == "cpu":
        device += f" with {latency['threads']} thread(s)"
    return (
        f"{dense_ms(latency):.2f} ms for a batch of {latency['batch']} on {device}"
        f", by a table whose median error is {100 * latency['error']:.1f} %"
    )
