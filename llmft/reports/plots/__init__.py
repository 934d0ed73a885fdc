"""The plots of the reports, narrow enough for a phone, and drawn from the results file only."""
