"""Measures submit-to-verdict over REST beside a bare cold `runsc run`, in turn, in one invocation.

Starts a stack of its own on free ports. Machines are noisy: read the ratios, not the milliseconds.
"""

import argparse
import json
import sys
from pathlib import Path

from bench import sandbox, soak
from bench.baseline import BareRunsc, directory_root, require_tools
from bench.latency import EXPECTED, PROGRAM, Submitter
from bench.percentiles import HEADER, line, percentile
from crucible_testkit.stack import Stack

COMMAND = ["/usr/bin/python3", "-c", PROGRAM]


def python_image(images: Path) -> Path:
    """The EROFS image of the runtime `python`."""
    index = json.loads((images / "index.json").read_text())
    digest: str = index["runtimes"]["python"]["digest"]
    return images / f"{digest.removeprefix('sha256:')}.erofs"


def main() -> int:
    """Runs the measurement and prints it."""
    if sys.argv[1:2] == ["sandbox"]:
        return sandbox.main(sys.argv[2:])
    if sys.argv[1:2] == ["soak"]:
        return soak.main(sys.argv[2:])
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("--runs", type=int, default=60, help="counted runs of each (default 60)")
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")
    arguments = parser.parse_args()
    require_tools()
    sys.stderr.write("starting a stack ...\n")
    with Stack() as stack, directory_root(python_image(stack.layout.images)) as root:
        bare = BareRunsc(root, COMMAND)
        submitter = Submitter(stack.address)
        for _ in range(3):  # caches of files and of connections, on both sides
            bare.run(EXPECTED.encode())
            submitter.run()
        cold: list[float] = []
        whole: list[float] = []
        for number in range(arguments.runs):
            cold.append(bare.run(EXPECTED.encode()))
            whole.append(submitter.run())
            if sys.stderr.isatty():
                sys.stderr.write(f"\r{number + 1} of {arguments.runs}")
        submitter.close()
    sys.stderr.write("\n")
    ratio = percentile(cold, 0.5) / percentile(whole, 0.5)
    tail = percentile(whole, 0.99) / percentile(whole, 0.5)
    if arguments.json:
        print(json.dumps({"bare": cold, "crucible": whole, "ratio_p50": ratio, "p99_over_p50": tail}))
        return 0
    print(HEADER)
    print(line("bare cold runsc run, by hand", cold))
    print(line("crucible, submit to verdict", whole))
    print(f"\nbare p50 / crucible p50: {ratio:.2f}    crucible p99 / p50: {tail:.2f}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
