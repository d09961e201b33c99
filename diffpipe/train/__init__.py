"""Training: the loop, and its processes, optimizers, averages and checkpoints. It knows no stage in particular."""
