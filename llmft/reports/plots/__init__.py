"""The plots of the reports: each one narrow, for a phone, and drawn from numbers that are known."""
