"""Faster ways to compute the same, on private APIs of the libraries below."""
