"""Training: the state of a run, one step, the loop, its hooks, evaluation."""
