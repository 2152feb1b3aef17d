"""`report.html` of a run: curves, the table of before and after, time, the referee, and the groups themselves.

read (the run folder) -> curves, findings, groups (plain values) -> page (one file without anything outside it)
"""

from megatron_urpo.reporting.report.page import write_report
from megatron_urpo.reporting.report.read import ReportError

__all__ = ["ReportError", "write_report"]
