"""Resume state: what a run needs to go on from a cut, written so that no crash leaves half of it."""
