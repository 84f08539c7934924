from __future__ import annotations

import csv
import io

from vit_ratio_opt.report.rows import group_studies
from vit_ratio_opt.report.trial_rows import TRIAL_COLUMNS, trial_rows
from vit_ratio_opt.utils.text import csv_text


def test_rows_of_trials_have_all_columns_and_one_best(make_study):
    rows = trial_rows(make_study())
    assert all(tuple(row) == TRIAL_COLUMNS for row in rows)
    assert sum(row["best"] for row in rows) == 1
    read = list(csv.DictReader(io.StringIO(csv_text(rows))))
    assert [float(row["accuracy"]) for row in read] == [row["accuracy"] for row in rows]


def test_studies_of_other_models_are_in_groups_of_their_own(make_study):
    first, second, other = make_study(name="a"), make_study(name="b"), make_study(weights="x")
    assert group_studies([first, other, second]) == [[first, second], [other]]
