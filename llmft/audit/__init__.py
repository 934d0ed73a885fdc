"""Checks before any metric: contamination, comparability, truncation, collapsed predictions."""
