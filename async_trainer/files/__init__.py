"""Files that are there as a whole or not at all, and weights in them."""
