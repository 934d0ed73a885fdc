"""Memory of a training step: an estimate in advance, and the measured peak."""
