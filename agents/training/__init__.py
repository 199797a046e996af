"""Training: the learner, its configuration, checkpoints, regularizers and processes."""
