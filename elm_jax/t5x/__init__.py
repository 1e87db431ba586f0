"""Our network, experts and tasks for T5X's scripts; no other room imports T5X."""
