"""Callbacks that connect other training loops with the context of a trial.

Their libraries are imported when a callback is made, never before.
"""

from __future__ import annotations

import sys
from importlib import import_module
from typing import Any

from vit_ratio_opt.errors import InputError
from vit_ratio_opt.training.context import TrainingStopped, TrialContext

__all__ = ["hf_callback", "lightning_callback"]


def hf_callback(context: TrialContext, metric: str) -> Any:
    """Return a callback for Hugging Face's ``Trainer`` that reports, stops and resumes a training.

    After each epoch the metric is reported, and so is the checkpoint if it is saved in
    ``context.state``. Asked to stop, it saves a checkpoint after the step and raises
    TrainingStopped. Give ``Trainer.train`` the last checkpoint in ``context.state`` to resume.

    Args:
        context: The context that ``train`` was given.
        metric: Name of the metric in the results of ``Trainer.evaluate``, such as
            ``"eval_accuracy"``, in the unit of the trainer's metric.

    Raises:
        InputError: transformers is not installed. In a training: ``eval_strategy`` is not
            ``"epoch"``, ``save_strategy`` neither that nor ``"no"``, or the metric is missing.
    """
    transformers = _import("transformers", "hf")

    class ReportToTrial(transformers.TrainerCallback):  # type: ignore[name-defined]
        """Report each epoch when it is evaluated and, where that is asked for, saved."""

        _value: object = None
        _epoch = 0  # the last that was reported
        _is_stopping = False

        def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            _check_arguments(args)
            if state.global_step:
                context.on_resume()

        def on_evaluate(
            self, args: Any, state: Any, control: Any, metrics: dict[str, Any], **_: Any
        ) -> None:
            self._value = _find(metrics, metric)
            if args.save_strategy == "no":
                self._report(state)

        def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if self._value is not None:
                self._report(state)
            if self._is_stopping:
                raise TrainingStopped(f"stopped after step {state.global_step}")

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if context.should_stop():
                self._is_stopping = control.should_save = True

        def _report(self, state: Any) -> None:
            value, self._value = self._value, None
            epoch = round(state.epoch)
            if epoch <= self._epoch:  # a further evaluation, after the training
                return
            self._epoch = epoch
            logged = [log for log in state.log_history if log.get("step") == state.global_step]
            losses = [log["loss"] for log in logged if "loss" in log]
            context.report(epoch, value, *losses[-1:])  # type: ignore[arg-type]

    return ReportToTrial()


def lightning_callback(context: TrialContext, metric: str) -> Any:
    """Return a callback for Lightning's ``Trainer`` that reports, saves and stops a training.

    After each epoch with a validation, it saves a checkpoint to ``context.state`` and reports the
    metric. Asked to stop, it ends the training before the next step by SystemExit, since Lightning
    ends the process after a KeyboardInterrupt. Give ``Trainer.fit`` the file
    ``context.state`` as ``ckpt_path``, if it exists, to resume at the beginning of an epoch.

    Args:
        context: The context that ``train`` was given.
        metric: Name with which the module logs the metric in its validation, in the unit of the
            trainer's metric.

    Raises:
        InputError: lightning is not installed. In a training: the metric was not logged.
    """
    # Lightning is published under two names, whose classes differ.
    is_old = "pytorch_lightning" in sys.modules and "lightning.pytorch" not in sys.modules
    lightning = _import("pytorch_lightning" if is_old else "lightning.pytorch", "lightning")

    class ReportToTrial(lightning.Callback):  # type: ignore[name-defined]
        """Report each epoch that was validated, once it is saved."""

        _is_validated = False

        def on_train_start(self, trainer: Any, module: Any) -> None:
            if trainer.ckpt_path is not None:
                context.on_resume()

        def on_train_batch_start(self, *_: Any) -> None:
            if context.should_stop():
                raise SystemExit("stopped before a step")

        def on_validation_end(self, trainer: Any, module: Any) -> None:
            self._is_validated = not trainer.sanity_checking

        def on_train_epoch_end(self, trainer: Any, module: Any) -> None:
            if not self._is_validated:
                return
            self._is_validated = False
            value = _find(trainer.callback_metrics, metric)
            if context.state is not None:
                trainer.save_checkpoint(context.state)
            context.report(trainer.current_epoch + 1, value)

    return ReportToTrial()


def _check_arguments(arguments: Any) -> None:
    """Refuse arguments of Hugging Face's ``Trainer`` with which there is no result of an epoch."""
    evaluates, saves = (
        str(getattr(arguments, f"{name}_strategy").value) for name in ("eval", "save")
    )
    if evaluates != "epoch" or saves not in ("epoch", "no"):
        raise InputError(
            "A trial is reported after each epoch, so `TrainingArguments` need "
            "eval_strategy='epoch', and save_strategy='epoch' or 'no', but have "
            f"{evaluates!r} and {saves!r}."
        )


def _import(module: str, extra: str) -> Any:
    try:
        return import_module(module)
    except ImportError:
        raise InputError(
            f"{module.partition('.')[0]} is not installed: pip install 'vit_ratio_opt[{extra}]'."
        ) from None


def _find(metrics: Any, name: str) -> Any:
    if name not in metrics:
        raise InputError(
            f"The metric {name!r} was not measured, but {', '.join(metrics) or 'nothing'}: name "
            "one of them, or log it."
        )
    return metrics[name]
