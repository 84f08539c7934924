"""Commands and Python code that resume or repeat a study."""

from __future__ import annotations

import shlex

from optuna.study import Study

from vit_ratio_opt._compat import rdb_of
from vit_ratio_opt.records.study import record_of
from vit_ratio_opt.utils.redact import redact

__all__ = ["repeat_code", "resume_command", "storage_url"]


def resume_command(study: Study, storage: str | None) -> str | None:
    """Return the command that resumes a study on any machine that reaches its storage.

    None for a study with a custom objective, which only its script can resume.

    Args:
        study: The study.
        storage: URL of its storage, which is shown without passwords.
    """
    if record_of(study).optional_settings is None:
        return None
    url = "URL" if storage is None else redact(storage)
    options = ["--storage", shlex.quote(url), "--study-name", _quoted(study.study_name)]
    return " ".join(["vit-ratio-opt", "worker", *options])


def repeat_code(study: Study, storage: str | None, *, n_trials: int) -> str | None:
    """Return Python code that repeats a study from its beginning; None as :func:`resume_command`.

    Args:
        study: The study.
        storage: URL of its storage, which is shown without passwords.
        n_trials: Number of trials.
    """
    if record_of(study).optional_settings is None:
        return None
    url = "URL" if storage is None else redact(storage)
    return (
        "import vit_ratio_opt as vro\n\n"
        f"search = vro.load_search({study.study_name!r}, {url!r})\n"
        'study = search.create_study("again", storage="sqlite:///again.db")\n'
        f"search.run(study, n_trials={n_trials})\n"
    )


def storage_url(study: Study) -> str | None:
    """Return the URL of a study's database; None behind a proxy, or where there is none."""
    database = rdb_of(study._storage)
    return None if database is None else database.url


def _quoted(text: str) -> str:
    """Return a text for a shell, with escapes for characters that would act on a terminal."""
    if text.isprintable():
        return shlex.quote(text)
    codes = text.encode("unicode_escape", errors="replace").decode().replace("'", "\\'")
    return f"$'{codes}'"
