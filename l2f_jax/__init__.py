"""Learning to Forget for Meta-Learning (L2F) and the MAML family in JAX."""
