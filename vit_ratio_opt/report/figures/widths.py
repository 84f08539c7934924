"""Sizes of the blocks."""

from __future__ import annotations

from collections.abc import Sequence

import plotly.graph_objects as go
from optuna.study import Study
from plotly.subplots import make_subplots

from vit_ratio_opt.records.answer import answer_trial
from vit_ratio_opt.records.trials import (
    block_rows,
)
from vit_ratio_opt.report.figures.style import (
    COLOURS,
    as_label,
    finished,
)

__all__ = ["widths_figure"]


def widths_figure(studies: Sequence[Study]) -> go.Figure:
    """Return what is left of each block in the answer's model, in per cent of dense.

    Attention is heads times their dimensions; with a cascade, tokens count instead, as queries.
    """
    rows = max(1, len(studies))
    figure = make_subplots(
        rows=rows,
        cols=1,
        shared_xaxes=True,
        vertical_spacing=0.3 / rows,
        subplot_titles=[as_label(study.study_name) for study in studies] if rows > 1 else None,
    )
    for row, study in enumerate(studies, start=1):
        best = answer_trial(study)
        blocks = [] if best is None else block_rows(study.user_attrs["dense"], best)
        series: dict[str, tuple[list[float], list[str]]] = {}
        for b in blocks:
            attention = b["heads"] * b["head_dim"] / (b["dense_heads"] * b["dense_head_dim"])
            series.setdefault("attention dimensions", ([], []))[0].append(100 * attention)
            series["attention dimensions"][1].append(
                f"{b['heads']} heads of {b['head_dim']}, before {b['dense_heads']} of "
                f"{b['dense_head_dim']}"
            )
            series.setdefault("FFN neurons", ([], []))[0].append(
                100 * b["neurons"] / b["dense_neurons"]
            )
            series["FFN neurons"][1].append(f"{b['neurons']} of {b['dense_neurons']} neurons")
            for key, name in (("mhsa_tokens", "attention tokens"), ("ffn_tokens", "FFN tokens")):
                if key in b:
                    series.setdefault(name, ([], []))[0].append(100 * b[key] / b["dense_tokens"])
                    series[name][1].append(f"{b[key]} of {b['dense_tokens']} tokens")
        for colour, (name, (left, texts)) in zip(COLOURS, series.items(), strict=False):
            figure.add_bar(
                x=[b["block"] for b in blocks],
                y=left,
                text=texts,
                textposition="none",
                hovertemplate="block %{x}: %{text} (%{y:.0f} %)<extra></extra>",
                marker_color=colour,
                name=name,
                legendgroup=name,
                showlegend=row == 1,
                row=row,
                col=1,
            )
    figure.update_yaxes(range=[0, 100], title_text="left, %")
    figure.update_xaxes(dtick=1)
    figure.update_xaxes(title_text="block", row=rows, col=1)
    return finished(figure, "Blocks of the answer's model", height=200 + 180 * rows)
