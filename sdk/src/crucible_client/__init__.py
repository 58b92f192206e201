"""Crucible client."""
