"""Pages in the browser for a run or a folder: look, decide, correct. Without torch, and without a model."""
