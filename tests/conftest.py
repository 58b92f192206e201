"""Every test folder gets the real servers of crucible_testkit."""

pytest_plugins = ["crucible_testkit.pytest_plugin"]
