"""Metrics under scikit-learn's names, on rows and on resampled rows."""
