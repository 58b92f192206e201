"""Generates protos/python from the .proto files. With --check it only tells whether what is committed is current.

Everything comes from the locked environment (buf, grpcio-tools, mypy-protobuf), so it works without a network.
"""

import argparse
import filecmp
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PYTHON = ROOT / "protos" / "python"
# Hand-written protos, and the one third-party module that no wheel ships as google.protobuf messages.
PACKAGES = ("crucible", "buf")


def generate(target: Path) -> None:
    """Writes the generated packages below `target`."""
    scripts = Path(sys.executable).parent
    environment = {**os.environ, "PATH": f"{scripts}{os.pathsep}{os.environ['PATH']}"}
    image = target / "image.binpb"
    subprocess.run([scripts / "buf", "build", "--output", image], cwd=ROOT, env=environment, check=True)
    ours = sorted(str(path.relative_to(ROOT / "protos")) for path in (ROOT / "protos" / "crucible").rglob("*.proto"))
    files = [*ours, "buf/validate/validate.proto"]
    subprocess.run(
        [
            sys.executable,
            "-m",
            "grpc_tools.protoc",
            f"--descriptor_set_in={image}",
            f"--python_out={target}",
            f"--grpc_python_out={target}",
            f"--mypy_out=quiet:{target}",
            f"--mypy_grpc_out=quiet:{target}",
            *files,
        ],
        env=environment,
        check=True,
    )
    image.unlink()
    # A message-only file has no stubs; the generator writes an empty module all the same.
    for path in [*target.rglob("*_pb2_grpc.py"), *target.rglob("*_pb2_grpc.pyi")]:
        if not path.name.startswith(tuple(Path(f).stem for f in files if f.endswith("_service.proto"))):
            path.unlink()
    for package in PACKAGES:
        (target / package / "py.typed").write_text("")
        for folder in [target / package, *(p for p in (target / package).rglob("*") if p.is_dir())]:
            (folder / "__init__.py").write_text("")


def differences(left: Path, right: Path) -> list[str]:
    """Paths, relative to the two trees, whose contents differ or that only one of them has."""
    names = {
        str(path.relative_to(tree))
        for tree in (left, right)
        for package in PACKAGES
        for path in (tree / package).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    return sorted(
        name
        for name in names
        if not (left / name).is_file()
        or not (right / name).is_file()
        or not filecmp.cmp(left / name, right / name, shallow=False)
    )


def main() -> int:
    """Generates, or checks."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="change nothing; exit with 1 when something would change")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        fresh = Path(folder)
        generate(fresh)
        changed = differences(fresh, PYTHON)
        if arguments.check:
            for name in changed:
                sys.stderr.write(f"out of date: protos/python/{name} (run `make generate`)\n")
            return 1 if changed else 0
        for package in PACKAGES:
            shutil.rmtree(PYTHON / package, ignore_errors=True)
            shutil.copytree(fresh / package, PYTHON / package)
        sys.stdout.write(f"generated: {len(changed)} files changed\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
