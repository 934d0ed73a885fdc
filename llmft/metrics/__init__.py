"""Metrics under scikit-learn's names, on rows and without some of them."""
