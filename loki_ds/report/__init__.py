"""Report: what a run kept and what it lost, as JSON, Markdown and one self-contained HTML page."""

from loki_ds.report.build import build_report, write_model_card, write_report
from loki_ds.report.compare import compare, comparison, draw_trade_off, read_report, write_comparison

__all__ = [
    "build_report",
    "compare",
    "comparison",
    "draw_trade_off",
    "read_report",
    "write_comparison",
    "write_model_card",
    "write_report",
]
