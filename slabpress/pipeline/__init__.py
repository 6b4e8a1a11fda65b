"""What runs in the user's process: accumulate, partition, wait for room, supervise, deliver."""
