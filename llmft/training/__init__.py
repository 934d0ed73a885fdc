"""Losses, the trainer, its history, and the record of a run."""
