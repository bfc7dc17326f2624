"""Learning from streams that do not end, and predicting meanwhile."""
