"""Figures of a running producer."""
