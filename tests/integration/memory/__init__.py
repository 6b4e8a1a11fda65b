"""Memory: a plan that comes true under load, and no growth anywhere."""
