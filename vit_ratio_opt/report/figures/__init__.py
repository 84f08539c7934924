"""Figures of studies, one file a figure: plotly, and PNG for the training of a trial."""
