"""What a reader sees: the page of a compressed network, the figures of experiments, and what seeds say together."""

from prunus.report.compression_page import write_page
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
