"""Crucible gateway."""
