"""Results files of preparation, training, evaluation and comparison: typed and versioned."""
