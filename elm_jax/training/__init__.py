"""Training: the loss, the optimisers and the step that trains many experts at once."""
