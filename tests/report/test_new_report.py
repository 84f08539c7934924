"""A new report is one file that reads records only: here LaTeX, in less than 40 lines."""

from __future__ import annotations

import inspect

from vit_ratio_opt.records.answer import answer_of
from vit_ratio_opt.records.study import record_of


def latex_table(studies):
    """Return the answers of studies as rows of a LaTeX table."""
    lines = [r"study & MHSA & FFN & cost & accuracy \\ \hline"]
    for study in studies:
        record, answer = record_of(study), answer_of(study)
        if answer is None or answer.found is None:
            lines.append(rf"{record.name} & \multicolumn{{4}}{{c}}{{dense}} \\")
            continue
        found = answer.found
        cells = [
            record.name,
            *(f"{ratio:.3f}" for ratio in found.pair),
            rf"{100 * found.cost_ratio:.1f} \% of the {record.cost.word}",
            rf"${found.accuracy:.2f} \pm {found.error:.2f}$",
        ]
        lines.append(rf"{' & '.join(cells)} \\")
    return "\n".join(lines)


def test_a_new_report_reads_records_only(make_study):
    study = make_study(planned=True)
    found = answer_of(study).found
    heading, row, other = latex_table([study, make_study(name="empty", trials=0)]).splitlines()
    assert heading.startswith("study & MHSA")
    assert row.startswith(rf"searched & {found.pair[0]:.3f} & {found.pair[1]:.3f} & ")
    assert rf"${found.accuracy:.2f} \pm" in row
    assert "dense" in other
    source = inspect.getsource(inspect.getmodule(latex_table))
    imports = [line for line in source.splitlines() if line.startswith("from vit_ratio_opt.")]
    assert all(".records." in line for line in imports)
    assert len(inspect.getsource(latex_table).splitlines()) + len(imports) <= 40
