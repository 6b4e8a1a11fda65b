"""The command line: ``slabpress send``, ``slabpress plan``, ``slabpress settings``, ``slabpress demo``."""
