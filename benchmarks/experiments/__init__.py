"""What the textbooks say of stochastic gradients, tried on a cluster: an experiment a file."""
