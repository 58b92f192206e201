"""`python -m crucible_store` serves; `python -m crucible_store migrate` prepares the database."""

from crucible_store.commands import main

if __name__ == "__main__":
    main()
