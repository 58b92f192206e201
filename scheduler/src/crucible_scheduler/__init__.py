"""Crucible scheduler."""
