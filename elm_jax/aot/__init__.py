"""AOT: programs compiled ahead of time, for devices that are here or not."""
