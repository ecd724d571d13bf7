"""How good predictions are: metrics, challenge rules, statistics, tables. Runs without torch."""

from semiseg.scoring.comparison import Comparison, compare_summaries, print_comparison
from semiseg.scoring.evaluator import EvaluateSettings, evaluate_folder
from semiseg.scoring.summary import Summary, read_summary
from semiseg.scoring.tables import print_summary

__all__ = [
    "Comparison",
    "EvaluateSettings",
    "Summary",
    "compare_summaries",
    "evaluate_folder",
    "print_comparison",
    "print_summary",
    "read_summary",
]
