"""Tests of one set of processes that many producers share."""
