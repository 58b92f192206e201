"""Crucible store."""
