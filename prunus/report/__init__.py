"""Reports: the page of a compressed network, figures of experiments, and statistics over seeds."""

from prunus.report.compression import write_page

__all__ = ["write_page"]
