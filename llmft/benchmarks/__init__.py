"""Benchmarks of `llmft bench`: llmft and baselines in turns, and the FLOPs that they need."""
