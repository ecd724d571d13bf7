"""One HTML page that shows a run to a person: what was trained, how well it does, and where it errs."""

from semiseg.reporting.comparison import write_comparison_report
from semiseg.reporting.page import write_report

__all__ = ["write_comparison_report", "write_report"]
