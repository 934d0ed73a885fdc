"""Faster computation of the same results, on private APIs of PyTorch and transformers."""
