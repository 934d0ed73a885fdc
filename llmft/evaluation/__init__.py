"""Metrics, statistics, baselines, audit, gates, edge cases and latency."""
