"""What a study says of itself in optuna-dashboard while it runs, and the dashboard. No torch."""

from __future__ import annotations

import contextlib
import copy
import logging
import math
import os
import sys
import time
import webbrowser
from collections.abc import Mapping, Sequence
from threading import Timer
from typing import TYPE_CHECKING, Any, BinaryIO

import optuna
from optuna.artifacts.exceptions import ArtifactNotFound
from optuna.storages import BaseStorage, get_storage
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

from vit_ratio_opt._compat import PLOT_KEY, note_keys, rdb_of, read_note
from vit_ratio_opt.errors import InputError
from vit_ratio_opt.records.answer import answer_of
from vit_ratio_opt.records.snapshot import snapshot
from vit_ratio_opt.records.study import StudyRecord
from vit_ratio_opt.records.trials import (
    accuracy_of,
    attribute,
    baseline_of,
    block_rows,
    cost_of,
    finished_trials,
    load_studies,
)
from vit_ratio_opt.report.figures import accuracy_figure, path_figure, widths_figure
from vit_ratio_opt.report.page import code, markdown_table, results_cells, resume_command
from vit_ratio_opt.report.tables import TRIAL_COLUMNS, summary
from vit_ratio_opt.runs.lineage import open_artifacts
from vit_ratio_opt.search.sampler import BinarySearchSampler
from vit_ratio_opt.space.geometry import BUDGET_CONSTRAINTS
from vit_ratio_opt.utils.failures import is_storage_error, reason
from vit_ratio_opt.utils.text import escape_markdown, short
from vit_ratio_opt.utils.untrusted import check_artifact_id, is_marked

if TYPE_CHECKING:
    from optuna.artifacts._protocol import ArtifactStore

__all__ = ["Explainer", "serve_dashboard", "study_note", "trial_note"]

# Of the time of a search, what its note and figures may take; what each trial shows comes on top.
_SHARE = 0.005
# Of a note or a figure in one attribute: MySQL takes 64 KiB, after Optuna has escaped it.
_PART = 40_000  # characters
_OWN_NOTES = "*What is written below this line is kept.*"
_CARD = 430  # pixels that a figure has in the dashboard
_LOOPBACK = ("127.0.0.1", "localhost", "::1")
_SPARKS = "▁▂▃▄▅▆▇█"
# Attributes of a trial that its note tells.
_NOTED = (
    *("macs_ratio", "params", "cost_ratio", "accuracy_pruned", "parent_trial", "resumed_from"),
    *("seed", "failure"),
)

_logger = logging.getLogger(f"optuna.{__name__}")


class Explainer:
    """A callback of ``study.optimize`` that keeps the dashboard's notes and figures up to date.

    Each trial gets its note at once. The study's own note and figures grow dearer with the number
    of trials, so they are made again when two hundred times the time has passed that the last
    time took, and by :meth:`refresh`. Several workers may do so: they write the same. What people
    write into the study's note, below ours, is kept.

    Nothing that goes wrong here disturbs the search.

    Args:
        n_trials: Trained trials that the search is to have; None if it has no such number.
    """

    def __init__(self, n_trials: int | None = None) -> None:
        self.n_trials = n_trials
        self._due = 0.0
        self._others: list[Study] | None = None

    def __call__(self, study: Study, trial: FrozenTrial) -> None:
        """After each trial."""
        try:
            _save_trial_note(study, trial)
        except Exception as error:
            _complain(error)
        if time.monotonic() >= self._due:
            self.refresh(study)

    def refresh(self, study: Study) -> None:
        """Make the study's note and figures anew."""
        started = time.monotonic()
        try:
            if self._others is None:
                self._others = _fixed_studies(study)
            study = snapshot(study)
            known = study._storage.get_study_system_attrs(study._study_id)
            note = study_note(study, self._others, n_trials=self.n_trials)
            _save_study_note(study, note, known)
            if answer_of(study) is not None:
                baseline = baseline_of(study, self._others)
                both = [study] if baseline is None else [study, baseline]
                cost = BUDGET_CONSTRAINTS[cost_of(study)]
                for name, figure in (
                    (f"accuracy-against-{cost}", accuracy_figure(both)),
                    ("path-of-the-search", path_figure(study, height=_CARD)),
                    ("blocks-of-the-best-model", widths_figure([study])),
                ):
                    key = f"{PLOT_KEY}{name}:"
                    _write(study, key, str(figure.to_json()), known)
        except Exception as error:
            _complain(error)
        ended = time.monotonic()
        self._due = ended + (ended - started) / _SHARE


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
    parts = [
        "\n\n".join([f"**{found[0]}**", *found[1:], looked_for]),
        markdown_table(*results_cells(group)),
        f"**Progress**: {count} trials are trained, {states[TrialState.RUNNING]} running, "
        f"{states[TrialState.FAIL]} failed.",
        f"**Next**: {_next(study)}",
        f"**Go on**, here or on another machine:\n\n{_code_block(_resume(study))}",
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


def serve_dashboard(
    storage: BaseStorage, host: str, port: int, *, study_name: str | None, browse: bool
) -> None:
    """Run optuna-dashboard, with the artifacts of all studies, until the process ends.

    Args:
        storage: Of the studies.
        host: Where to listen.
        port: Where to listen.
        study_name: Which study to open; the list of them by default.
        browse: Whether to open a browser, if this machine has one with windows.
    """
    from optuna_dashboard import run_server  # a search needs none of it

    backend = get_storage(storage)  # with a cache
    address = f"http://{host}:{port}/dashboard"
    if study_name is not None:
        load_studies(backend, [study_name])
        address += f"/studies/{backend.get_study_id_from_name(study_name)}"
    all_trials = backend.get_all_trials

    def get_all_trials(study_id: int, *arguments: Any, **options: Any) -> list[FrozenTrial]:
        return [_as_shown(trial) for trial in all_trials(study_id, *arguments, **options)]

    # Of this one object only: the trials that the dashboard gets to see.
    setattr(backend, "get_all_trials", get_all_trials)  # noqa: B010
    print(f"optuna-dashboard at {address} (Ctrl-C stops it)", flush=True)
    if host not in _LOOPBACK:
        print("It has no passwords: whoever reaches this address can change and delete studies.")
    if browse and _has_windows():
        opening = Timer(1.0, webbrowser.open, [address])  # when the server answers
        opening.daemon = True
        opening.start()
    run_server(backend, host=host, port=port, artifact_store=_AllArtifacts(backend))


class _AllArtifacts:
    """The artifact stores of all studies of a storage as one; new files go into the first.

    Only what this package has marked is written: whoever can write the storage names the folders.
    """

    def __init__(self, storage: BaseStorage) -> None:
        self._storage = storage
        self._stores: dict[str, ArtifactStore] = {}

    def open_reader(self, artifact_id: str) -> BinaryIO:
        check_artifact_id(artifact_id)
        for store in self._all():
            try:
                return store.open_reader(artifact_id)
            except Exception:
                continue
        raise ArtifactNotFound(f"{artifact_id} is in none of the studies' artifact stores.")

    def write(self, artifact_id: str, content_body: BinaryIO) -> None:
        for store in self._all(writable=True):
            store.write(artifact_id, content_body)
            return
        raise InputError("No study of this storage has a folder of artifacts made here.")

    def remove(self, artifact_id: str) -> None:
        for store in self._all(writable=True):
            try:
                store.remove(artifact_id)
                return
            except Exception:
                continue

    def _all(self, *, writable: bool = False) -> list[ArtifactStore]:
        """Return those of studies that were made in the meantime, too."""
        for study in self._storage.get_all_studies():
            origin = study.user_attrs.get("origin")
            location = origin.get("artifacts") if isinstance(origin, Mapping) else None
            if isinstance(location, str) and location not in self._stores:
                try:
                    self._stores[location] = open_artifacts(location)
                except InputError as error:
                    _logger.warning(str(error))
        return [
            store
            for location, store in self._stores.items()
            if not writable or is_marked(location)
        ]


def _as_shown(trial: FrozenTrial) -> FrozenTrial:
    """A trial for the dashboard: attributes in our order, constraints where it looks for them.

    Databases give attributes in any order. The dashboard's 0.21 does not know the constraints of
    Optuna 5, and every trial would look feasible. The list of Optuna 4 is known to all releases.
    """
    shown = copy.copy(trial)
    attributes = trial.user_attrs
    order = [name for name in TRIAL_COLUMNS if name in attributes]
    shown.user_attrs = {name: attributes[name] for name in [*order, *attributes]}
    if trial.constraints:
        shown.system_attrs = {
            **{k: v for k, v in trial.system_attrs.items() if not k.startswith("constraints:")},
            "constraints": list(trial.constraints.values()),
        }
    return shown


def _save_trial_note(study: Study, trial: FrozenTrial) -> None:
    """As ``save_note``, which reads all notes of the study, twice, to find the one before."""
    version, text = note_keys(trial._trial_id)
    study._storage.set_study_system_attr(study._study_id, version, 1)
    _write(study, text, trial_note(study, trial), {})


def _save_study_note(study: Study, note: str, known: Mapping[str, Any]) -> None:
    """The note, with what somebody has written below the one before, or instead of it."""
    number, before = read_note(known)
    _, _, kept = before.partition(_OWN_NOTES)
    if _OWN_NOTES not in before:
        kept = before
    whole = f"{note}\n\n---\n\n{_OWN_NOTES}\n\n{kept.strip()}\n"
    if whole != before:
        version, text = note_keys()
        study._storage.set_study_system_attr(study._study_id, version, number + 1)
        _write(study, text, whole, known)


def _write(study: Study, key: str, text: str, known: Mapping[str, Any]) -> None:
    """A text under a key of the dashboard's, in as few parts as may be.

    The dashboard's own functions make parts of 2,045 characters. Those of two workers that write
    at the same time get mixed, and a figure that is no JSON takes its page down.

    Args:
        study: The study.
        key: What the parts' numbers are appended to.
        text: All of it.
        known: The study's system attributes, among which there may be more parts than now.
    """
    parts = [text[start : start + _PART] for start in range(0, max(1, len(text)), _PART)]
    parts += [""] * (sum(name.startswith(key) for name in known) - len(parts))
    for number, part in enumerate(parts):
        study._storage.set_study_system_attr(study._study_id, f"{key}{number}", part)


def _fixed_studies(study: Study) -> list[Study]:
    """Studies of one fixed ratio beside this one."""
    storage = study._storage
    names = []
    for other in storage.get_all_studies():
        with contextlib.suppress(InputError):  # a damaged one, or not ours
            record = StudyRecord.read(other.study_name, other.user_attrs)
            names += [record.name] if record.settings.strategy == "fixed" else []
    return [optuna.load_study(study_name=name, storage=storage) for name in names]


def _next(study: Study) -> str:
    sampler = study.sampler
    if not isinstance(sampler, BinarySearchSampler):
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


def _resume(study: Study) -> str:
    database = rdb_of(study._storage)
    return resume_command(study, None if database is None else database.url)


def _code_block(text: str) -> str:
    """A block that the text cannot leave."""
    fence = "```"
    while fence in text:
        fence += "`"
    return f"{fence}\n{short(text, 1000)}\n{fence}"


def _has_windows() -> bool:
    """Whether a browser that opens is one beside this terminal, not in it."""
    if sys.platform in ("darwin", "win32"):
        return True
    return bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))


def _complain(error: Exception) -> None:
    if not is_storage_error(error):  # the search itself will notice that
        _logger.warning(f"The dashboard's notes were not written: {reason(error)}")
