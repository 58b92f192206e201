"""The supervisor of one stack: `python -m crucible_local`, its options as JSON on standard input."""

import sys

from crucible_local.options import StackOptions
from crucible_local.supervise import supervise

sys.exit(supervise(StackOptions.load(sys.stdin.read())))
