"""Commands and Python code that resume or repeat a study."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from typing import Any

from optuna.study import Study

from vit_ratio_opt._compat import rdb_of
from vit_ratio_opt.utils.redact import redact

__all__ = ["repeat_code", "resume_command", "storage_url"]


def resume_command(study: Study, storage: str | None) -> str:
    """What goes on with the study, on any machine that reaches its storage."""
    url = "URL" if storage is None else redact(storage)
    options = ["--storage", shlex.quote(url), "--study-name", _quoted(study.study_name)]
    return " ".join(["vit-ratio-opt", "worker", *options])


def _quoted(text: str) -> str:
    """Return a text for a shell; one that would act on a terminal by its codes."""
    if text.isprintable():
        return shlex.quote(text)
    codes = text.encode("unicode_escape", errors="replace").decode().replace("'", "\\'")
    return f"$'{codes}'"


def repeat_code(study: Study, storage: str | None, rows: Sequence[Mapping[str, Any]]) -> str:
    """Python that repeats the study from its beginning."""
    url = "URL" if storage is None else redact(storage)
    done = sum(row["state"] in ("COMPLETE", "PRUNED") for row in rows)
    return (
        "from vit_ratio_opt import create_study, load_objective, run_study\n\n"
        f"objective = load_objective({study.study_name!r}, {url!r})\n"
        'study = create_study(objective, study_name="again", storage="sqlite:///again.db")\n'
        f"run_study(study, objective, n_trials={max(1, done)})\n"
    )


def storage_url(study: Study) -> str | None:
    """Return the URL of a study's database; None behind a proxy, or where there is none."""
    database = rdb_of(study._storage)
    return None if database is None else database.url
