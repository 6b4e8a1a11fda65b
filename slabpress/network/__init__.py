"""The network process: metadata, connections, Produce requests."""
