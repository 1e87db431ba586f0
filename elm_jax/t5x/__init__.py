"""The door to T5X: the one room that imports it. Nothing else here needs it."""
