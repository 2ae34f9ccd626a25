# SPDX-License-Identifier: Apache-2.0
"""The report of a run: one self-contained HTML page."""

from sohes.report.page import write_report

__all__ = ["write_report"]
