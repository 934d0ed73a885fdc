"""Bases, adapters, heads, and how they are saved and loaded."""
