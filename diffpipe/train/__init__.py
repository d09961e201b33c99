"""The loop and what it stands on: processes, optimizers, averages, checkpoints. Any stage is the same to it."""
