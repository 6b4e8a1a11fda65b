"""The network process: connections, metadata, in-flight state, produce."""
