"""`python -m crucible_executor.sandbox.launcher DESCRIPTOR CONFIG`: started by an executor, never by hand."""

import sys

from crucible_executor.sandbox.launcher.config import LauncherConfig
from crucible_executor.sandbox.launcher.server import main

sys.exit(main(int(sys.argv[1]), LauncherConfig.load(sys.argv[2])))
