"""Reports, rendered from one results object; no metric is computed here (D10)."""
