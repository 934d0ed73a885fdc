"""Batched inference, resume and stored predictions: shared by predict, evaluate and compare."""
