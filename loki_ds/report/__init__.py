"""Report: what a run kept and what it lost, as JSON, Markdown and one self-contained HTML page."""

from loki_ds.report.build import build_report, write_report
from loki_ds.report.compare import comparison

__all__ = ["build_report", "comparison", "write_report"]
