"""The command line: ``slabpress send``, ``slabpress plan``, ``slabpress demo``."""
