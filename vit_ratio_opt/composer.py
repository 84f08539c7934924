"""Search the pruning ratios of a dense model: the parts, the study, notes and figures."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from optuna.pruners import BasePruner
from optuna.storages import BaseStorage
from optuna.study import Study
from optuna.trial import FrozenTrial

from vit_ratio_opt.errors import InputError
from vit_ratio_opt.model_files.described import check_saveable
from vit_ratio_opt.models.blocks import ViT
from vit_ratio_opt.models.elastic import ElasticViT
from vit_ratio_opt.pruning.elastic import build_elastic
from vit_ratio_opt.pruning.options import Structural
from vit_ratio_opt.records.answer import Answer, answer_of
from vit_ratio_opt.records.study import write_study
from vit_ratio_opt.report.explainer import Explainer
from vit_ratio_opt.report.sentences import answer_sentences
from vit_ratio_opt.report.trial_files import trial_files
from vit_ratio_opt.runs.creation import create_study
from vit_ratio_opt.runs.loop import Callback, run_study
from vit_ratio_opt.runs.search_task import SearchTask
from vit_ratio_opt.runs.signals import SearchStopped
from vit_ratio_opt.runs.storage_url import DEFAULT_STORAGE, database_files
from vit_ratio_opt.runs.testing import test_answer
from vit_ratio_opt.space.metric import ACCURACY
from vit_ratio_opt.space.pairs import RatioPair, longest_chain
from vit_ratio_opt.training.recipe import Recipe
from vit_ratio_opt.training.trainer import ImageTrainer
from vit_ratio_opt.utils.files import named_folder

__all__ = ["Search"]


class Search(SearchTask):
    """Search of the two pruning ratios of a dense ViT.

    Args:
        dense: The dense, fine-tuned ViT. It is copied, not changed. The copy is in float32. Parts
            that are frozen (``requires_grad`` is False) stay frozen in fine-tuning.
        data: Images of training, validation and test. With a custom trainer this may also be
            an iterable of calibration batches, normalised and on the device of ``dense``.
        limit: :class:`~vit_ratio_opt.Budget`, :class:`~vit_ratio_opt.Tolerance` or
            :class:`~vit_ratio_opt.Frontier`.
        cost: What a budget is a share of: ``"macs"``, ``"params"``, ``"latency"`` or a cost
            object.
        pruning: Weights, patches or both: :class:`~vit_ratio_opt.Structural` (weights) by default,
            :class:`~vit_ratio_opt.Tokens` or :class:`~vit_ratio_opt.Both`.
        training: Fine-tuning of the pruned models: a :class:`~vit_ratio_opt.Recipe`, or a custom
            :class:`~vit_ratio_opt.Trainer`.
        options: Options that change which pairs are trained.
        run: Folders, device, precision and processes of this run.

    Attributes:
        pruner: Prunes the dense model; ``pruner.space`` is the search space.
        trainer: Trains and evaluates the pruned models.
        objective: Objective function for ``study.optimize``.
        curve: The pairs that use up the budget; empty with a tolerance.
        baseline: The pair of one fixed ratio within the budget, where there is one.

    Raises:
        UnsupportedModelError: The model cannot be pruned.
        InputError: The limit cannot be met, the data does not fit the model, or options do not go
            together.

    Example:
        >>> search = vro.Search(dense, data, limit=vro.Budget(0.6))
        >>> study = search.create_study("cifar10", storage="sqlite:///study.db")
        >>> search.run(study, n_trials=8)
        >>> print(search.answer(study))
    """

    def _connect(self) -> None:
        super()._connect()
        self.journal.attach = trial_files

    @property
    def recipe(self) -> Recipe:
        """Return the recipe of the built-in trainer.

        Raises:
            InputError: The search has a custom trainer.
        """
        if not isinstance(self.trainer, ImageTrainer):
            raise InputError("A custom trainer has no recipe: call its own `train`.")
        return self.trainer.recipe

    def trainer_for(self, recipe: Recipe) -> ImageTrainer:
        """Return the built-in trainer with another recipe; raises as :attr:`recipe` does."""
        _ = self.recipe
        assert isinstance(self.trainer, ImageTrainer)
        return self.trainer.with_recipe(recipe)

    def create_study(
        self,
        study_name: str,
        *,
        storage: str | BaseStorage = DEFAULT_STORAGE,
        pruner: BasePruner | None = None,
    ) -> Study:
        """Create the study of this search, or resume it if the storage has it.

        Args:
            study_name: Name of the study in the storage.
            storage: SQLAlchemy URL, or a storage of Optuna.
            pruner: Optuna pruner for the reports after each epoch; none by default.

        Raises:
            InputError: The storage cannot be used, or it has a study of this name with other
                settings.
        """
        if self.is_run_default and isinstance(storage, str):
            files = database_files(storage)
            if files:
                check_saveable(self.dense)
                folder = named_folder(files[0].parent / "checkpoints", study_name)
                self.journal.keep_in(folder)
        return create_study(self, study_name=study_name, storage=storage, pruner=pruner)

    def run(
        self,
        study: Study,
        n_trials: int | None = None,
        *,
        wait: bool = False,
        say: Callable[[str], None] = print,
        callbacks: Sequence[Callback] = (),
        explain: bool = True,
    ) -> None:
        """Run trials until the study has ``n_trials`` trained ones, with those of earlier runs.

        See :func:`vit_ratio_opt.runs.loop.run_study` for workers, signals and failures.

        Args:
            study: Study that :meth:`create_study` returned.
            n_trials: Number of trained trials of the study, those of other workers included; None
                runs until nothing is left to learn.
            wait: Whether to wait for the trials of other workers when no trial can begin.
            say: Function called with each line of text: one for each trial, and the answer at the
                end.
            callbacks: Functions called after each trial of this process, as callbacks of
                ``study.optimize``.
            explain: Whether to write notes and figures for optuna-dashboard into the study.

        Raises:
            InputError: ``n_trials`` is below 1, the study belongs to another search, or a model
                cannot be saved.
            SearchStopped: A signal ended the search; running it again resumes it.
        """
        explainer = Explainer(n_trials) if explain else None
        observers: list[Callback] = [] if explainer is None else [explainer]
        try:
            run_study(
                study,
                self.objective,
                n_trials=n_trials,
                wait=wait,
                say=say,
                callbacks=[*observers, *callbacks],
            )
        except SearchStopped:
            if explainer is not None:
                explainer.refresh(study)
            raise
        if explainer is not None:
            explainer.refresh(study)
        if answer_of(study) is not None:
            for sentence in answer_sentences(study):
                say(sentence)

    def answer(self, study: Study) -> Answer | None:
        """Return the answer of a study; None before any trial was trained.

        ``answer.load_model()`` returns the pruned and fine-tuned model.
        """
        answer = answer_of(study)
        if answer is None:
            return None
        return answer.bind(study, lambda trial: self.model_of(study, trial))

    def elastic(self, study: Study) -> ElasticViT:
        """Return a model whose levels are pairs of a study's frontier, pruned but not trained.

        Each level has to prune neither module less than the next larger one, so the levels are the
        longest such chain of the frontier. :func:`vit_ratio_opt.build_elastic` takes other pairs.

        Args:
            study: Study that searches the frontier.

        Raises:
            InputError: The study searches no frontier or has no answer yet, or it does not prune
                ranks with the usual allocation and no bounds.
        """
        answer, pruning = self.answer(study), self.pruner.pruning
        if answer is None or not answer.front:
            raise InputError(
                f"Study {study.study_name!r} has no frontier (yet): search one with "
                "`Frontier(...)`, or give pairs to `build_elastic`."
            )
        if not isinstance(pruning, Structural) or pruning != Structural(
            repair=pruning.repair, round_to=pruning.round_to
        ):
            raise InputError(
                "An elastic model needs `Structural` pruning of ranks, without an allocation, "
                "`skip` or `bounds` of its own."
            )
        batches = [x if isinstance(x, torch.Tensor) else x[0] for x in self.pruner.batches]
        return build_elastic(
            self.pruner.dense,
            longest_chain(RatioPair(*candidate.pair) for candidate in answer.front),
            self.pruner.calibration,
            batches if pruning.repair else None,
            round_to=self.pruner.round_to,
        )

    def test(self, what: Study | Answer) -> float | None:
        """Return the test accuracy of an answer in per cent; None without an answer.

        The test split is read once for each model: the study keeps the accuracies.

        Args:
            what: A study, whose answer is tested, or an answer of :meth:`answer`.

        Raises:
            InputError: The trials kept no models, the file of the model is missing, or the trainer
                has no test data.
        """
        answer = self.answer(what) if isinstance(what, Study) else what
        study = what if isinstance(what, Study) else what.study
        if answer is None:
            return None
        if study is None:
            raise InputError("This answer does not know its study: use `Search.answer(study)`.")
        names = ("tested", "per_class", "probes")
        before = [study.user_attrs.get(name) for name in names]
        accuracy = test_answer(study, answer, self.objective)
        if study.user_attrs.get("tested") != before[0]:
            self._record_whole_test(study)
        if [study.user_attrs.get(name) for name in names] != before:
            Explainer(getattr(study.sampler, "n_trials", None)).refresh(study)
        return accuracy

    def _record_whole_test(self, study: Study) -> None:
        """Record the dense accuracy on both halves of a test split that also validates."""
        if self.data is None or self.data.validation != "test":
            return
        if self.trainer.metric != ACCURACY:  # only a mean over images is the mean of both halves
            return
        sizes = len(self.data.val), len(self.data.test)
        dense = self.dense_accuracy, study.user_attrs["tested"]["dense"]
        whole = (sizes[0] * dense[0] + sizes[1] * dense[1]) / sum(sizes)
        write_study(study, dense_full_test_accuracy=round(whole, 4))

    def model_of(self, study: Study, trial: FrozenTrial) -> ViT:
        """Return the pruned model of a trial, on the device of the search.

        Raises:
            InputError: The trial kept no model, or its file is neither here nor in the store.
        """
        return self.journal.model_of(trial, study, self.dense).to(self.pruner.device)
