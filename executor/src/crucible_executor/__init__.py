"""Crucible executor."""
