"""What a reader sees: the page of a compressed network, and the figures of experiments."""

from prunus.report.figures import Curve, Reference, save_lines
from prunus.report.page import write_page

__all__ = ["Curve", "Reference", "save_lines", "write_page"]
