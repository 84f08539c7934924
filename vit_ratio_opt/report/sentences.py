"""Describe a study in sentences."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from optuna.study import Study

from vit_ratio_opt.records.answer import Answer, answer_of
from vit_ratio_opt.records.candidates import Candidate
from vit_ratio_opt.records.frontier import expected_at
from vit_ratio_opt.records.loading import baseline_of
from vit_ratio_opt.records.per_class import fallen_sentence
from vit_ratio_opt.records.probes import probe_sentence
from vit_ratio_opt.records.snapshot import snapshot
from vit_ratio_opt.records.study import StudyRecord, record_of
from vit_ratio_opt.records.trials import finished_trials, tested_accuracy
from vit_ratio_opt.report.rows import answer_row, dense_ms
from vit_ratio_opt.space.metric import ACCURACY, Metric
from vit_ratio_opt.utils.text import shorten

__all__ = ["answer_sentences", "expected_text", "summary", "title"]

# Accuracies of single trainings that a sentence lists.
_MOST_VALUES = 4
# Parts of a model that a sentence lists.
_MOST_PARTS = 8


def title(study: Study) -> str:
    """Return the dense model and the data set of a study, or the name of the study."""
    record = record_of(study)
    if record.model is None:
        return f"study {shorten(record.name)}"
    return shorten(record.model) + (
        "" if record.dataset is None else f" on {shorten(record.dataset)}"
    )


def summary(study: Study, studies: Sequence[Study] = ()) -> list[str]:
    """Return the study in sentences: the aim, the answer, the saving of the answer.

    Args:
        study: The study.
        studies: Studies of the same storage. One of the fixed ratio is the baseline of a study
            that has not trained the fixed ratio itself.
    """
    study = snapshot(study)
    answer = answer_of(study)
    sentence, *why = answer_sentences(study)
    aim = " ".join([_aim(study), *_parts(study)])
    if answer is None:
        return [aim, sentence]
    return [
        aim,
        sentence,
        *_comparison(study, answer, studies),
        *_measurements(study, answer),
        *_classes(study, answer),
        *_probes(study, answer),
        *why,
    ]


def _aim(study: Study) -> str:
    """Return what the study searches, within which limit, and what the dense model has."""
    record = record_of(study)
    ratios = "one fixed ratio of" if record.is_fixed else "how much each of"
    where = "the dense model" if record.model is None else title(study)
    aim = (
        f"This study looks for {ratios} attention (MHSA) and feed-forward (FFN) to prune from "
        f"{where}, {'along' if record.has_frontier else 'with'} {record.limit_text}"
    )
    dense, has = record.dense, []
    if dense.val_accuracy is not None and not record.compares_with_dense:
        has.append(f"has {record.metric.text(dense.val_accuracy)} on validation images")
    if dense.macs is not None:
        has.append(f"needs {dense.macs:,} FLOPs an image (1 FLOP is 1 multiply-add)")
    if not has:
        return f"{aim}."
    takes = "" if record.latency is None else f", and takes {_conditions(record.latency)}"
    labels = ""
    if record.compares_with_dense:
        labels = (
            f" The {record.metric.name} compares a model's outputs with the dense model's; no "
            "labels are used."
        )
    return f"{aim}; the dense model {' and '.join(has)}{takes}.{labels}"


def _parts(study: Study) -> list[str]:
    """Return which parts of the model are not pruned or not trained, in sentences."""
    settings = record_of(study).optional_settings
    if settings is None:
        return []
    bounds, sentences = settings.bounds or {}, []
    whole = [name for name, (_, high) in bounds.items() if high == 0]
    if whole:
        sentences.append(f"Not pruned: {_listed(whole)}.")
    limited = [
        f"{shorten(name)} loses {100 * low:g} to {100 * high:g} %"
        for name, (low, high) in bounds.items()
        if high > 0
    ]
    if limited:
        sentences.append(f"Bounds of single parts: {_listed(limited)}.")
    if settings.frozen:
        sentences.append(f"Frozen, so not trained: {_listed(settings.frozen)}.")
    return sentences


def _listed(items: Sequence[str]) -> str:
    """Return the first of some texts, and how many more there are."""
    more = len(items) - _MOST_PARTS
    shown = ", ".join(shorten(item) for item in items[:_MOST_PARTS])
    return f"{shown} and {more} more" if more > 0 else shown


def answer_sentences(study: Study) -> list[str]:
    """Return the answer in a sentence, and others on its training and on Optuna's best trial."""
    study = snapshot(study)
    answer, done = answer_of(study), len(finished_trials(study))
    if answer is None and not done:
        return ["There is no answer yet: no trial was trained."]
    if answer is None:
        within = "" if record_of(study).has_frontier else " and within the limit"
        return [f"There is no answer yet: none of {done} trained trials is complete{within}."]
    remarks = (answer.harm_of_training, answer.why_not_best)
    why = [remark for remark in remarks if remark is not None]
    found = answer.found
    if found is None:
        return [
            f"The answer is the dense model: after {done} trained trials, no pair keeps the "
            f"tolerance with a probability of {answer.confidence:g} yet.",
            *why,
        ]
    pair = f"MHSA ratio {found.pair[0]:.3f} and FFN ratio {found.pair[1]:.3f}"
    reason = ""
    if record_of(study).is_fixed:
        pair = f"the fixed ratio {found.pair[0]:.3f}"
    if answer.is_baseline:
        pair = f"the fixed ratio {found.pair[0]:.3f}"
        reason = f": {_why_the_baseline(answer)}"
    elif answer.confidence is not None:
        reason = (
            f": the cheapest pair that keeps the tolerance with a probability of "
            f"{answer.confidence:g} or more, its own being {found.probability:.2f}"
        )
    metric = answer.metric
    return [
        f"{_begin(answer)} trial {found.trial.number}, {pair}{reason}. It has "
        f"{100 * found.cost_ratio:.1f} % of the {answer.cost.word}, and "
        f"{expected_text(found, metric)} {metric.label} is expected; {_trainings(found, metric)}.",
        *why,
    ]


def _begin(answer: Answer) -> str:
    """Return the words before the trial of the answer; of a frontier, how far it reaches."""
    if not answer.front:
        return "The answer is"
    if len(answer.front) == 1:
        return "The frontier has one pair so far:"
    cheapest, dearest = (100 * answer.front[end].cost_ratio for end in (0, -1))
    return (
        f"The frontier has {len(answer.front)} pairs from {cheapest:.1f} % to {dearest:.1f} % of "
        f"the {answer.cost.word}. Its knee, the answer, is"
    )


def expected_text(found: Candidate, metric: Metric = ACCURACY) -> str:
    """Return the posterior mean and its standard error, such as ``95.31 ± 0.42 %``.

    The error is left out where the study knows no noise.
    """
    return metric.text(found.accuracy, error=found.error)


def _why_the_baseline(answer: Answer) -> str:
    other = answer.likeliest_other
    if other is None:
        return "no other pair was trained yet"
    trial = other.trial.number
    if other.probability <= 0.5:
        return (
            "no other pair is better with a probability above one half (the likeliest, of trial "
            f"{trial}, with {other.probability:.2f})"
        )
    return (
        f"the likeliest other pair, of trial {trial}, is better with a probability of "
        f"{other.probability:.2f}, which is a tie, and was trained less often"
    )


def _trainings(found: Candidate, metric: Metric) -> str:
    values = [metric.number(accuracy) for accuracy in found.own_accuracies]
    unit = f" {metric.unit}".rstrip()
    stopped = len(values) - found.trained
    if stopped:
        whole = "once" if found.trained == 1 else f"{found.trained} times"
        return (
            f"the pair was trained {whole} to the end, and {stopped} of its trainings were "
            f"stopped early ({', '.join(values)}{unit})"
        )
    if len(values) == 1:
        return f"the pair was trained once, with {values[0]}{unit}, so it is not confirmed"
    if len(values) > _MOST_VALUES:
        mean = metric.text(found.own_accuracy)
        return f"the pair was trained {len(values)} times, with {mean} on average"
    listed = f"{', '.join(values[:-1])} and {values[-1]}{unit}"
    return f"the pair was trained {len(values)} times, with {listed}"


def _comparison(study: Study, answer: Answer, studies: Sequence[Study]) -> list[str]:
    """Return what the answer saves against the fixed ratio, in a sentence."""
    record, baseline = record_of(study), answer.baseline
    if record.is_fixed:
        return ["It is the baseline that a search of both ratios has to beat."]
    if answer.is_baseline:
        return []
    if baseline is not None and baseline.trained == 0:
        return [
            f"The training of the fixed ratio {baseline.pair[0]:.3f} (trial "
            f"{baseline.trial.number}) was stopped early, so there is nothing to compare with."
        ]
    if baseline is not None and answer.found is not None:
        # The difference of the two printed figures, as a reader would subtract them.
        number = answer.metric.number
        gain = float(number(answer.found.accuracy)) - float(number(baseline.accuracy))
        return [
            f"Against the fixed ratio {baseline.pair[0]:.3f} of the same study (trial "
            f"{baseline.trial.number}, {expected_text(baseline, answer.metric)} expected) that is "
            f"{answer.metric.gain(gain)}, and the answer is better with a probability of "
            f"{answer.found.probability:.2f}."
        ]
    other = baseline_of(study, studies)
    compared = None if other is None else answer_of(other)
    if record.has_frontier:
        return _against_front(answer, compared)
    if answer.has_baseline and compared is None:
        return ["The fixed ratio of this study was not trained yet."]
    if other is not None and compared is not None:
        return [_against_study(record, answer, other, compared)]
    if record.optional_settings is None:
        return []
    return ["There is no study of one fixed ratio with this limit to compare with yet."]


def _against_study(record: StudyRecord, answer: Answer, other: Study, compared: Answer) -> str:
    """Return what the answer saves against the answer of a study of one fixed ratio."""
    fixed, word = compared.found, record.cost.word
    cost_ratio = 1.0 if answer.found is None else answer.found.cost_ratio
    if fixed is None:
        return (
            f"The study of one fixed ratio, {shorten(other.study_name)}, has the dense model as "
            f"its answer: the answer here needs {cost_ratio:.3f} times its {word}."
        )
    share = cost_ratio / fixed.cost_ratio
    against = (
        f"Against one fixed ratio of {fixed.pair[0]:.3f} (study {shorten(other.study_name)}, "
        f"trial {fixed.trial.number}, {expected_text(fixed, answer.metric)} expected)"
    )
    if record.has_tolerance:
        return f"{against} the answer needs {share:.3f} times the {word}."
    gain = answer.metric.gain(answer.accuracy - compared.accuracy)
    return f"{against} that is {gain}, for {share:.3f} times the {word}."


def _against_front(answer: Answer, compared: Answer | None) -> list[str]:
    """Return what the knee gains against the frontier of one fixed ratio, in a sentence."""
    found, metric = answer.found, answer.metric
    if found is None or compared is None:
        return []
    expected = expected_at(compared.points, found.cost_ratio)
    if expected is None:
        return []
    _, fixed, error = expected
    # The difference of the two printed figures, as a reader would subtract them.
    gain = float(metric.number(found.accuracy)) - float(metric.number(fixed))
    return [
        f"Against the frontier of one fixed ratio (study {shorten(compared.study_name)}, "
        f"{metric.text(fixed, error=error)} expected at this cost) that is "
        f"{metric.gain(gain, error=math.hypot(found.error, error))}."
    ]


def _measurements(study: Study, answer: Answer) -> list[str]:
    """Return what was measured once on test images and of the latency, in sentences."""
    row, sentences, text = answer_row(study, answer), [], answer.metric.text
    dense = tested_accuracy(study, None)
    if answer.found is not None and row["test_accuracy"] is not None:
        others = [] if dense is None else [f"the dense model {text(dense)}"]
        if answer.baseline is not None and not answer.is_baseline:
            fixed = tested_accuracy(study, answer.baseline.trial)
            others += [] if fixed is None else [f"the fixed ratio {text(fixed)}"]
        against = f", {' and '.join(others)}" if others else ""
        sentences.append(
            f"On test images the model of trial {row['trial']} has "
            f"{text(row['test_accuracy'])}{against}."
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


def _classes(study: Study, answer: Answer) -> list[str]:
    """Return which classes fell, in a sentence."""
    fallen = None if answer.found is None else fallen_sentence(study, answer.found.trial)
    return [] if fallen is None else [fallen]


def _probes(study: Study, answer: Answer) -> list[str]:
    """Return what probes of the features measured, in a sentence."""
    found = None if answer.found is None else probe_sentence(study, answer.found.trial)
    return [] if found is None else [found]


def _conditions(latency: Mapping[str, Any]) -> str:
    """Return the dense model's predicted latency and the error of the prediction."""
    device = shorten(latency["device"])
    if device == "cpu":
        device += f" with {latency['threads']} thread(s)"
    run_as = {
        "compiled": "compiled",
        "graph": "as a CUDA graph",
        "onnxruntime": f"in ONNX Runtime by {shorten(latency.get('provider') or 'a provider')}",
    }
    device += "".join(f", {run_as[w]}" for w in run_as if w in (latency.get("run_as") or ()))
    return (
        f"{dense_ms(latency):.2f} ms for a batch of {latency['batch']} on {device}"
        f", by a table whose median error is {100 * latency['error']:.1f} %"
    )
