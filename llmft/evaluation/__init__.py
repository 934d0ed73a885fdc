"""Variants, pairs of them, gates, verdict, ensembles, slices, edge cases, latency, calibration."""
