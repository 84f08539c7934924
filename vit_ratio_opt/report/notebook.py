"""Display studies in a Jupyter notebook."""

from __future__ import annotations

from optuna.study import Study

from vit_ratio_opt.report.figures.gallery import figures_of
from vit_ratio_opt.report.markdown import markdown_page
from vit_ratio_opt.report.rows import group_studies

__all__ = ["show"]


def show(*studies: Study) -> None:
    """Display sentences, table and figures of one or more studies."""
    from IPython.display import Markdown, display

    for group in group_studies(studies):
        display(Markdown(markdown_page(group, trials=False)))  # type: ignore[no-untyped-call]
        for figure in figures_of(group):
            display(figure)  # type: ignore[no-untyped-call]
