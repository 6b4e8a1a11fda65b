"""Every death and fault that a pipeline must survive, each its own test: nothing lost, doubled or reordered."""
