"""A run that one can watch: what it publishes in its folder, and what shows that."""
