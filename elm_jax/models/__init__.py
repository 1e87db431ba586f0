"""Models: the T5 network, the experts that stand beside it, and the names of their parameters."""
