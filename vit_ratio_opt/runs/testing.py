"""Read the test split once: for the answer of a study, the dense model and the fixed ratio.

The validation accuracies of all classes are counted as well, while the models are at hand, and the
features of encoders are probed where the images have labels.
"""

from __future__ import annotations

import logging
from typing import Any

from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

from vit_ratio_opt.data.labels import class_counts
from vit_ratio_opt.errors import InputError
from vit_ratio_opt.latency.sessions import find_provider
from vit_ratio_opt.latency.timing import time_models
from vit_ratio_opt.records.answer import Answer
from vit_ratio_opt.records.per_class import fallen_sentence
from vit_ratio_opt.records.study import write_study
from vit_ratio_opt.records.trials import tested_accuracy
from vit_ratio_opt.runs.objective import PruningObjective
from vit_ratio_opt.space.costs import Latency
from vit_ratio_opt.training.features import FeatureTrainer
from vit_ratio_opt.training.trainer import ImageTrainer

__all__ = ["test_answer"]

_logger = logging.getLogger(f"optuna.{__name__}")


def test_answer(study: Study, answer: Answer, objective: PruningObjective) -> float:
    """Return the test accuracy of an answer of a study in per cent.

    The model of the answer's trial is tested, and that of the fixed ratio's trial where a search
    within a budget has trained it. With the dense model as the answer, only that is tested. Each
    model is tested once: the study keeps its accuracy in the attribute ``tested``. In a study of
    latency, ``tested`` also has the milliseconds of a batch here, of the dense model and of the
    answer.

    Raises:
        InputError: The trainer has no test data, no models were kept, or the file of a model is
            gone.
    """
    before = study.user_attrs.get("tested", {})
    dense = tested_accuracy(study, None)
    if dense is None:
        dense = _test(objective, objective.pruner.dense)
    known: dict[str, Any] = {"dense": dense, "accuracies": dict(before.get("accuracies") or {})}
    if before.get("trial") is not None:
        known["accuracies"][str(before["trial"])] = before["accuracy"]
    tested = dict(known)
    if answer.found is not None:
        trial = answer.found.trial
        tested |= {"trial": trial.number, "accuracy": _test_once(study, objective, trial, known)}
        if isinstance(objective.pruner.space.cost, Latency):
            tested |= _latency(study, objective, trial)
    baseline = answer.baseline
    if baseline is not None and baseline.trial.state == TrialState.COMPLETE:
        accuracy = _test_once(study, objective, baseline.trial, known)
        tested["baseline"] = {"trial": baseline.trial.number, "accuracy": accuracy}
    if tested != before:
        write_study(study, tested=tested)
    if answer.found is not None:
        _compare_classes(study, objective, answer.found.trial)
        _compare_probes(study, objective, answer.found.trial)
    return float(tested.get("accuracy", dense))


def _compare_classes(study: Study, objective: PruningObjective, trial: FrozenTrial) -> None:
    """Count the validation images of each class that are classified correctly; warn of a fall."""
    trainer = objective.trainer
    is_known = study.user_attrs.get("per_class", {}).get("trial") == trial.number
    if is_known or not isinstance(trainer, ImageTrainer) or trainer.data.task != "single-label":
        return
    try:
        model = objective.journal.model_of(trial, study, objective.pruner.dense)
    except InputError:
        return  # tested earlier, and the file is gone
    data = trainer.data
    counts = {
        "images": class_counts(data.val.labels, len(data.classes)).tolist(),
        "dense": trainer.count_correct(objective.pruner.dense),
        "pruned": trainer.count_correct(model),
    }
    write_study(study, per_class={"trial": trial.number, **counts})
    sentence = fallen_sentence(study, trial)
    if sentence is not None:
        _logger.warning(sentence)


def _compare_probes(study: Study, objective: PruningObjective, trial: FrozenTrial) -> None:
    """Record what probes know of the labels by the features of both models."""
    trainer = objective.trainer
    is_known = study.user_attrs.get("probes", {}).get("trial") == trial.number
    if is_known or not isinstance(trainer, FeatureTrainer) or not trainer.has_probes:
        return
    try:
        model = objective.journal.model_of(trial, study, objective.pruner.dense)
    except InputError:
        return  # tested earlier, and the file is gone
    change = trainer.probe(trainer.dense).change_to(trainer.probe(model))
    write_study(study, probes={"trial": trial.number, **change})


def _test(objective: PruningObjective, model: Any) -> float:
    test = getattr(objective.trainer, "test", None)
    if test is None:
        raise InputError("The trainer has no test data: give it a method `test(model)`.")
    return float(test(model))


def _test_once(
    study: Study, objective: PruningObjective, trial: FrozenTrial, known: dict[str, Any]
) -> float:
    """Return the test accuracy of a trial's model; measure it only where it is not known."""
    accuracies: dict[str, float] = known["accuracies"]
    number = str(trial.number)
    if number not in accuracies:
        dense = objective.pruner.dense
        model = objective.journal.model_of(trial, study, dense).to(objective.pruner.device)
        accuracies[number] = _test(objective, model)
        # At once: the file of another model may be gone.
        write_study(study, tested={**study.user_attrs.get("tested", {}), **known})
    return accuracies[number]


def _latency(study: Study, objective: PruningObjective, trial: FrozenTrial) -> dict[str, Any]:
    """Return the milliseconds of a batch, for the dense model and for a trial's."""
    names, tested = ("dense_ms", "pruned_ms"), study.user_attrs.get("tested", {})
    if tested.get("trial") == trial.number and "pruned_ms" in tested:
        return {name: tested[name] for name in (*names, "device")}
    pruner, cost = objective.pruner, objective.pruner.space.cost
    assert isinstance(cost, Latency)
    model = objective.journal.model_of(trial, study, pruner.dense).to(pruner.device)
    precision = getattr(objective.trainer, "precision", None)
    taken = time_models(
        [pruner.dense, model], batch=cost.batch, precision=precision, engine=cost.engine
    )
    measured: dict[str, Any] = {
        name: round(1e3 * seconds, 4) for name, seconds in zip(names, taken, strict=True)
    }
    device = getattr(objective.trainer, "device_name", "unknown")
    if cost.engine == "onnxruntime":
        device += f" in ONNX Runtime by {find_provider(pruner.device)}"
    return {**measured, "device": device}
