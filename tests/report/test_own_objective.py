"""Studies in Optuna's own style: the sampler, a custom objective, no settings.

What the objective did not record is left out everywhere: no "None", no traceback.
"""

from __future__ import annotations

import io
import json

import optuna
import pytest
from optuna.trial import TrialState
from optuna_dashboard import get_note
from optuna_dashboard._custom_plot_data import get_plotly_graph_objects
from rich.console import Console

from vit_ratio_opt.errors import InputError
from vit_ratio_opt.records.answer import answer_of
from vit_ratio_opt.records.loading import load_studies
from vit_ratio_opt.records.study import StudyRecord, record_of
from vit_ratio_opt.records.trials import finished_trials
from vit_ratio_opt.report.dashboard import shown_trial
from vit_ratio_opt.report.explainer import Explainer
from vit_ratio_opt.report.figures.gallery import figures_of
from vit_ratio_opt.report.html import html_page
from vit_ratio_opt.report.markdown import markdown_page
from vit_ratio_opt.report.notes import study_note, trial_note
from vit_ratio_opt.report.rows import build_report, group_studies
from vit_ratio_opt.report.sentences import answer_sentences, summary
from vit_ratio_opt.report.terminal import results_table, trials_table
from vit_ratio_opt.report.trial_files import trial_files
from vit_ratio_opt.report.trial_rows import trial_rows
from vit_ratio_opt.search.binary_search import BinarySearchSampler
from vit_ratio_opt.search.limits import Budget, Frontier, Tolerance, directions_of
from vit_ratio_opt.search.plan import Proposal
from vit_ratio_opt.search.space import ratio_distributions
from vit_ratio_opt.space.shape import BlockShape, ViTShape
from vit_ratio_opt.space.structural import StructuralSpace
from vit_ratio_opt.utils.text import csv_text

SHAPE = ViTShape(
    patches=16, prefix_tokens=1, patch_dim=48, embed_dim=32, num_classes=10,
    blocks=(BlockShape(4, 8, 64),) * 3, fixed_params=1_000,
)  # fmt: skip
SPACE = StructuralSpace(SHAPE)
BLOCKS = [[4, 4, 32], [4, 2, 16], [3, 4, 8]]


def suggest_pair(trial):
    ratios = ratio_distributions(SPACE).items()
    return tuple(trial.suggest_float(name, d.low, d.high) for name, d in ratios)


def accuracy_at(pair):
    return 80 - 4 * sum(pair) - 8 * (pair[0] - 0.4) ** 2


@pytest.fixture
def make_own():
    """A study that a custom objective has run and recorded."""

    def make(limit, *, storage=None, name="own", metric=accuracy_at, records=(), trials=6):
        def objective(trial):
            pair = suggest_pair(trial)
            trial.suggest_float("lr", 1e-5, 1e-3, log=True)
            macs_ratio = SPACE.cost_ratio(*pair)
            known = {
                "macs_ratio": macs_ratio, "macs": round(macs_ratio * SHAPE.macs),
                "params": 5_000, "blocks": BLOCKS, "accuracy": accuracy_at(pair),
            }  # fmt: skip
            for attribute in ("macs_ratio", *records):
                trial.set_user_attr(attribute, known[attribute])
            if isinstance(limit, Budget):
                trial.set_constraint("flops", macs_ratio - limit.share)
                return metric(pair)
            if isinstance(limit, Frontier):
                return metric(pair), macs_ratio
            drop = 80 - accuracy_at(pair)
            trial.set_constraint("accuracy_drop", drop - limit.points)
            if drop > limit.points:
                raise optuna.TrialPruned
            return macs_ratio

        dense = 80.0 if isinstance(limit, Frontier) else None
        sampler = BinarySearchSampler(SPACE, limit, dense=dense, seed=0)
        study = optuna.create_study(
            study_name=name, storage=storage, sampler=sampler, directions=directions_of(limit)
        )
        study.optimize(objective, n_trials=trials)
        return study

    return make


def describe_dense(study, **more):
    dense = {"macs": SHAPE.macs, "params": SHAPE.params, "blocks": SHAPE.block_sizes}
    study.set_user_attr("dense", {**dense, "tokens": SHAPE.tokens, **more})
    study.set_user_attr("cost", {"name": "macs", "word": "FLOPs", "constraint": "flops"})


def shown(study) -> dict[str, str]:
    """Everything that shows a study, as text."""
    console = Console(file=io.StringIO(), width=300)
    console.print(trials_table(study))
    console.print(results_table(build_report([study])))
    return {
        "terminal": console.file.getvalue(),
        "sentences": " ".join(summary(study)),
        "csv": csv_text(trial_rows(study)),
        "markdown": markdown_page([study]),
        "page": html_page([study]),
        "note": study_note(study),
        "notes": "\n".join(trial_note(study, trial) for trial in study.trials),
    }


LIMITS = [Budget(0.6), Tolerance(2.0), Frontier(levels=4)]
LIMIT_TEXTS = (
    *("at most 60 % of the FLOPs", "at most 2 points of accuracy lost"),
    "the frontier of {} and FLOPs",
)
RECORDS = [(), ("macs", "params", "blocks", "accuracy")]


@pytest.mark.parametrize("records", RECORDS)
@pytest.mark.parametrize("limit", LIMITS)
def test_it_is_loaded_and_shown_everywhere(make_own, limit, records, url):
    study = make_own(limit, storage=url, records=records)
    if records:
        describe_dense(study, val_accuracy=80.0)
    (loaded,) = load_studies(study._storage)
    limit_text = LIMIT_TEXTS[LIMITS.index(limit)].format("accuracy" if records else "value")
    assert record_of(loaded).limit_text == limit_text
    answer = answer_of(study)
    assert answer.found.pair == study.sampler.answer(study)
    for place, text in shown(study).items():
        assert "None" not in text.replace("None yet", ""), place
        assert "nan" not in text.lower().split(), place
    sentence = answer_sentences(study)[0]
    begin = "Its knee, the answer, is" if answer.front else "The answer is"
    assert f"{begin} trial {answer.found.trial.number}, " in sentence
    assert "lr" in shown(study)["notes"]
    assert json.dumps(build_report([study]))
    assert len(finished_trials(study)) == 6


@pytest.mark.parametrize("limit", LIMITS)
def test_before_any_trial_there_is_no_answer_and_no_gap(make_own, limit):
    study = make_own(limit, trials=1)
    for trial in study.get_trials(deepcopy=False):
        trial.state, trial.values = TrialState.FAIL, None
    for place, text in shown(study).items():
        assert "None" not in text, place
    assert answer_sentences(study) == ["There is no answer yet: no trial was trained."]
    assert "study own" in shown(study)["terminal"]


def test_a_metric_of_ones_own_has_its_name_and_no_unit(make_own):
    study = make_own(Budget(0.6), metric=lambda pair: accuracy_at(pair) / 100)
    study.set_metric_names(["mIoU"])
    text = " ".join(summary(study))
    found = answer_of(study).found
    assert f"{found.accuracy:.4g} ± {found.error:.4g} validation mIoU is expected" in text
    assert "%" not in text.replace("% of the FLOPs", "")
    fixed = answer_of(study).baseline.accuracy
    if not answer_of(study).is_baseline:
        gain = float(f"{found.accuracy:.4g}") - float(f"{fixed:.4g}")
        assert f"that is {gain:+.4g}, and the answer is better" in text
    assert "| mIoU |" in markdown_page([study])
    assert "mIoU" in figures_of([study])[0].layout.title.text


def test_a_metric_that_is_stored_may_be_minimised(make_own):
    low, planned = optuna.create_study(direction="minimize"), make_own(Budget(0.6))
    for key, value in planned.user_attrs.items():
        low.set_user_attr(key, value)
    low.set_user_attr("metric", {"name": "loss", "unit": "", "larger_is_better": False})
    for trial in planned.trials:
        known = {"user_attrs": trial.user_attrs, "constraints": trial.constraints}
        known |= {"params": trial.params, "distributions": trial.distributions}
        low.add_trial(optuna.trial.create_trial(value=80 - trial.value, **known))
    answer = answer_of(low)
    losses = [trial.value for trial in low.trials]
    assert answer.found.pair == answer_of(planned).found.pair
    assert min(losses) <= answer.found.accuracy <= max(losses)
    assert "validation loss is expected" in answer_sentences(low)[0]
    figure = figures_of([low])[0]
    (frontier,) = [trace for trace in figure.data if trace.mode == "lines"]
    assert list(frontier.y) == sorted(frontier.y, reverse=True)


def test_notes_and_figures_are_written_while_it_runs(make_own):
    study = make_own(Budget(0.6), trials=3)
    explain = Explainer()
    explain(study, study.trials[0])
    assert "3 trials are trained, 0 running, 0 failed" in get_note(study)
    assert "run the script that created the study again" in get_note(study)
    figures = get_plotly_graph_objects(study._storage.get_study_system_attrs(study._study_id))
    assert set(figures) == {"accuracy-against-flops", "path-of-the-search"}
    describe_dense(study)
    assert trial_files(study, study.trials[0]) == {}
    assert shown_trial(study.trials[0]).user_attrs == study.trials[0].user_attrs


def test_blocks_are_shown_where_they_are_recorded(make_own):
    study = make_own(Budget(0.6), records=("blocks", "params"))
    describe_dense(study)
    assert set(trial_files(study, study.trials[0])) == {"blocks.csv"}
    assert "| 2 | 3 x 4, before 4 x 8 | 8 of 64 |" in trial_note(study, study.trials[0])
    assert len(figures_of([study])) == 3


def test_only_its_script_resumes_it(make_own):
    study = make_own(Budget(0.6), trials=1)
    record = StudyRecord.read("own", study.user_attrs)
    with pytest.raises(InputError, match=r"has a custom objective .* run the script"):
        _ = record.settings
    page = html_page([study])
    assert "vit-ratio-opt worker" not in page
    assert "Run the script that created it" in page


def test_two_of_them_are_in_groups_of_their_own(make_own, make_study):
    storage = optuna.storages.InMemoryStorage()
    first = make_own(Budget(0.6), storage=storage, name="a")
    second = make_own(Budget(0.6), storage=storage, name="b")
    ours = make_study(storage, "ours")
    assert group_studies([first, ours, second]) == [[first], [ours], [second]]
    assert len(load_studies(storage)) == 3
    assert "study a" in html_page([first, second, ours])


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("limit", {"budget": 0.6, "tolerance": 1.0}), ("limit", 5), ("plan", {"curve": [[0.1]]}),
        ("cost", {"name": 5}), ("dense", []), ("metric", "loss"),
    ],
)  # fmt: skip
def test_a_damaged_attribute_of_it_is_one_sentence(make_own, key, value):
    attributes = {**make_own(Budget(0.6), trials=1).user_attrs, key: value}
    with pytest.raises(InputError, match=f"Study 'own' is damaged: .*{key}"):
        StudyRecord.read("own", attributes)


def test_a_trial_over_the_budget_counts_as_untrained(make_own):
    study = make_own(Budget(0.6), trials=2)
    trial = study.ask()
    trial.set_constraint("flops", 0.1)
    study.tell(trial, state=TrialState.PRUNED)
    assert len(finished_trials(study)) == 2


def test_a_search_of_ones_own_is_shown_by_its_trials(make_own):
    class Everything:
        constraint, limits = None, ((0.0, 0.0), (0.8, 0.8))
        pairs = ((0.125, 0.5), (0.25, 0.375), (0.625, 0.25))

        def propose(self, observed, pending=(), blocked=(), *, confirm=False):
            left = [pair for pair in self.pairs if pair not in observed]
            return Proposal(left[0] if left else None, "a test")

        def answer(self, observed, *, complete=None):
            return None

        def to_json(self):
            return {"pairs": self.pairs}

    sampler = BinarySearchSampler(SPACE, Everything())
    study = optuna.create_study(direction="maximize", sampler=sampler)
    for _ in Everything.pairs:
        trial = study.ask()
        pair = suggest_pair(trial)
        trial.set_user_attr("macs_ratio", SPACE.cost_ratio(*pair))
        study.tell(trial, accuracy_at(pair))
    StudyRecord.read("s", study.user_attrs)
    assert answer_of(study).found.trial.number == study.best_trial.number
    assert "a limit of its own, Everything" in shown(study)["sentences"]


@pytest.mark.parametrize(
    ("key", "value"),
    [
        *((key, 5) for key in ("screened", "path", "dense", "plan", "limit", "metric", "cost")),
        ("dense", "x"), ("plan", "x"), ("dense", {"macs": "many"}), ("screened", [["a", 1, 2]]),
    ],
)  # fmt: skip
def test_an_attribute_of_another_type_is_one_sentence_with_study_and_name(make_own, key, value):
    study = make_own(LIMITS[0], trials=2)
    study.set_user_attr(key, value)
    with pytest.raises(InputError, match=f"Study 'own' is damaged: .*`{key}`"):
        answer_of(study)


def test_attributes_of_another_program_are_not_refused():
    study = optuna.create_study(study_name="other")
    for key in ("device", "config", "latency"):
        study.set_user_attr(key, 5)
    assert record_of(study).limit is None
    assert answer_of(study) is None
