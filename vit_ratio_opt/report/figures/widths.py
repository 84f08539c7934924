"""Sizes of the blocks of the answer's model."""

from __future__ import annotations

from collections.abc import Sequence

import plotly.graph_objects as go
from optuna.study import Study
from plotly.subplots import make_subplots

from vit_ratio_opt.records.answer import answer_trial
from vit_ratio_opt.records.snapshot import snapshot
from vit_ratio_opt.records.study import record_of
from vit_ratio_opt.records.trials import block_rows
from vit_ratio_opt.report.figures.style import COLOURS, as_label, finish_figure

__all__ = ["widths_figure"]

_Bars = tuple[list[float], list[str]]


def widths_figure(studies: Sequence[Study]) -> go.Figure:
    """Return the sizes of the blocks of the answer's model, in per cent of the dense model.

    Attention is heads times their dimensions. With a cascade there are also the tokens that
    attend, and those in the FFN.
    """
    studies = [snapshot(study) for study in studies]
    rows = max(1, len(studies))
    figure = make_subplots(
        rows=rows,
        cols=1,
        shared_xaxes=True,
        vertical_spacing=0.3 / rows,
        subplot_titles=[as_label(s.study_name) for s in studies] if rows > 1 else None,
    )
    for row, study in enumerate(studies, start=1):
        best = answer_trial(study)
        blocks = [] if best is None else block_rows(record_of(study).dense, best)
        for colour, (name, (left, texts)) in zip(COLOURS, _series(blocks).items(), strict=False):
            figure.add_bar(
                x=[block["block"] for block in blocks],
                y=left,
                text=texts,
                textposition="none",
                hovertemplate="block %{x}: %{text} (%{y:.0f} %)<extra></extra>",
                marker_color=colour,
                name=name,
                legendgroup=name,
                showlegend=all(trace.name != name for trace in figure.data),
                row=row,
                col=1,
            )
    figure.update_yaxes(range=[0, 100], title_text="left, %")
    figure.update_xaxes(dtick=1)
    figure.update_xaxes(title_text="block", row=rows, col=1)
    return finish_figure(figure, "Blocks of the answer's model", height=200 + 180 * rows)


def _series(blocks: Sequence[dict[str, int]]) -> dict[str, _Bars]:
    """Return the size of each block in per cent and a text for it, by the name of the series."""
    series: dict[str, _Bars] = {}

    def add(name: str, share: float, text: str) -> None:
        left, texts = series.setdefault(name, ([], []))
        left.append(100 * share)
        texts.append(text)

    for b in blocks:
        add(
            "attention dimensions",
            b["heads"] * b["head_dim"] / (b["dense_heads"] * b["dense_head_dim"]),
            f"{b['heads']} heads of {b['head_dim']}, before {b['dense_heads']} of "
            f"{b['dense_head_dim']}",
        )
        neurons = f"{b['neurons']} of {b['dense_neurons']} neurons"
        add("FFN neurons", b["neurons"] / b["dense_neurons"], neurons)
        for key, name in (("mhsa_tokens", "attention tokens"), ("ffn_tokens", "FFN tokens")):
            if key in b:
                tokens = f"{b[key]} of {b['dense_tokens']} tokens"
                add(name, b[key] / b["dense_tokens"], tokens)
    return series
