"""Engines: the loops that train, score and embed."""
