"""What a training step needs of memory: estimated before, measured after."""
