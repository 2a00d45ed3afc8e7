"""Metrics, comparisons and the report of a run."""
