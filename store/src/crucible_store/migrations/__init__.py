"""Alembic's scripts. Run by `python -m crucible_store migrate` alone."""
