"""Speed of this project beside its peers and the ceilings of the machine, all in one run."""
