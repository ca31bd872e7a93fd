"""Reports: the page of a compressed network, figures and pages of experiments, and statistics over seeds."""

from prunus.report.compression import write_page
from prunus.report.figure_data import Curve, Reference
from prunus.report.figures import save_line_plot
from prunus.report.statistics import BANDS, Comparison, compare_paired, mean_and_band

__all__ = [
    "BANDS",
    "Comparison",
    "Curve",
    "Reference",
    "compare_paired",
    "mean_and_band",
    "save_line_plot",
    "write_page",
]
