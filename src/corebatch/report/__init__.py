"""What a run did: read from its folder, added up, printed as tables, written as a page with plots.

run = read_run("runs/demo")
summary = summarise(run)
print_summary(summary, Console())     # rich
write_report("runs/demo")             # runs/demo/report.html; needs pip install 'corebatch[report]'
summary.to_json()                     # the same for machines
"""

from corebatch.errors import MissingExtraError
from corebatch.report.page import write_report
from corebatch.report.reading import read_run
from corebatch.report.record import Accuracy, Evaluated, RunRecord
from corebatch.report.summary import LossSummary, PhaseSummary, SourceSummary, Summary
from corebatch.report.terminal import print_summary
from corebatch.report.totals import summarise
from corebatch.step_line import StepLine as StepRecord

__all__ = [
    "Accuracy",
    "Evaluated",
    "LossSummary",
    "MissingExtraError",
    "PhaseSummary",
    "RunRecord",
    "SourceSummary",
    "StepRecord",
    "Summary",
    "print_summary",
    "read_run",
    "summarise",
    "write_report",
]
