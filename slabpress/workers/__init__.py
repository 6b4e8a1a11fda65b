"""The compression processes."""
