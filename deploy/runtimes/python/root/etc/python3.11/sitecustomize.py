"""Each printed line reaches its watcher at once, although standard output is a pipe."""

import sys

if sys.stdout is not None:
    sys.stdout.reconfigure(line_buffering=True)
