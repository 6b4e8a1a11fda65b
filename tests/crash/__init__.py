"""Random faults of every kind against a real cluster: no record is lost, doubled or out of order."""
