"""Lanes, and the pool that runs them. Knows nothing of torch, pandas or training."""
