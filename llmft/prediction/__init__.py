"""Batched inference, resumption and stored predictions, for predict, evaluate and compare."""
