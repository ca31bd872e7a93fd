"""What a reader sees: the page of a compressed network, the figures of experiments, and what seeds say together."""

from prunus.report.figures import Curve, Reference, save_lines
from prunus.report.page import write_page
from prunus.report.statistics import BANDS, Comparison, paired, summary

__all__ = ["BANDS", "Comparison", "Curve", "Reference", "paired", "save_lines", "summary", "write_page"]
