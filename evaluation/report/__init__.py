"""Evaluation results as JSON and text files (results.py); and runs as a page (`python -m evaluation.report`)."""

from evaluation.report.results import format_samples, nan_to_none, notes, printable, table, write

__all__ = ["format_samples", "nan_to_none", "notes", "printable", "table", "write"]
