"""The training loop and what it needs: schedule, checkpoints, validation, pace, progress."""
