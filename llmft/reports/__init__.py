"""Reports, rendered from one frozen results file; nothing is computed here (D10)."""
