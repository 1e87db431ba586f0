"""Library: a directory of experts, each complete in itself."""
