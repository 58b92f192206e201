"""Repeatable measurements of Crucible, as ratios against a baseline that runs in the same invocation."""
