"""Weights: reading and writing the parameters of base models."""
