"""Bytes and ownership shared by the processes: layout, arena, states, doorbells. Knows nothing of Kafka."""
