"""What outlives a process: checkpoints, the update log, and the storage under them."""
