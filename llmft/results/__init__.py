"""What a preparation, a run, an evaluation and a comparison found: typed, versioned, published."""
