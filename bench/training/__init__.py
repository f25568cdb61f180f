"""One training step: the case, the loaded model, the step, its cost, limits and memory."""
