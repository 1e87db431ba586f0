"""Scoring: log-probabilities of answer choices, the prediction they make, and the shapes of their batches."""
