"""Builds the root images of the runtimes: `python -m crucible_executor.build_images --source DIR --output DIR`.

One EROFS file per runtime, named by its hash, and an index. What has the same inputs as the index says is left alone.
Needs root, mmdebstrap and mkfs.erofs. An old image stays: a running executor may still boot from it.
"""

from __future__ import annotations

import argparse
import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from crucible_executor.sandbox.image import (
    DEFAULT_IMAGES_DIR,
    INDEX_NAME,
    BuiltImage,
    ImageIndex,
    ImageStore,
    image_digest,
)
from crucible_executor.sandbox.port import SandboxFault
from crucible_executor.sandbox.runtimes import RuntimeDataError, RuntimeDefinition, load_definitions

RECIPE = "2"
"""Part of every image's inputs: count it up when this module builds differently."""
SUITE = "bookworm"
EPOCH = "1735689600"
"""The one modification time of all files, for images that can be built again bit by bit."""
IMAGE_UUID = "c0c1b1e0-0000-4000-8000-000000000001"
STARTERS = {"python": "python.py", "sh": "sh.sh"}
STARTER_FOLDER = "usr/lib/crucible"
MOUNT_POINTS = ("proc", "sys", "dev", "dev/shm", "tmp", "work")
KEEP_OUT = ("doc", "man", "info", "locale", "lintian", "bug", "bash-completion", "common-licenses", "doc-base")
STRIP = (
    "boot",
    "media",
    "srv",
    "usr/lib/apt",
    "usr/lib/dpkg",
    "usr/lib/systemd",
    "usr/share/dpkg",
    "usr/share/polkit-1",
    "var/cache",
    "var/lib/apt",
    "var/lib/dpkg",
    "var/log",
    *(f"usr/share/{name}" for name in KEEP_OUT),
)
STRIP_PATTERNS = (
    "usr/bin/apt*",
    "usr/bin/dpkg*",
    "usr/sbin/dpkg*",
    "etc/apt",
    "etc/machine-id",
    "etc/*-",
    "etc/.pwd.lock",
)
BUILD_TIMEOUT = 900.0


class BuildError(Exception):
    """An image cannot be built; the message says why and what mends it."""


def build_all(source: Path, output: Path) -> ImageIndex:
    """Bring every image up to date and return the index; raises BuildError, RuntimeDataError."""
    definitions = load_definitions(source)
    output.mkdir(parents=True, exist_ok=True)
    with _locked(output):
        try:
            known = dict(ImageStore(output).index().runtimes)
        except SandboxFault:
            known = {}
        wanted = {name: _inputs(definition, source) for name, definition in definitions.items()}
        stale = [name for name in definitions if not _up_to_date(known.get(name), wanted[name], output)]
        for name in definitions:
            if name not in stale:
                _say(f"{name}: up to date ({known[name].digest})")
        if stale:
            _check_tools()

            def build(name: str) -> BuiltImage:
                return _build(definitions[name], wanted[name], source, output)

            with ThreadPoolExecutor(max_workers=len(stale), thread_name_prefix="build") as pool:
                built = pool.map(build, stale)
                known |= dict(zip(stale, built, strict=True))
        index = ImageIndex(runtimes={name: known[name] for name in definitions})
        _write(output / INDEX_NAME, index.model_dump_json(indent=2).encode() + b"\n")
        return index


def _inputs(definition: RuntimeDefinition, source: Path) -> str:
    overlay = sorted(path for path in _overlay(definition, source).rglob("*") if path.is_file())
    parts = [RECIPE, SUITE, EPOCH, definition.model_dump_json()]
    parts += [
        f"{path.relative_to(source)}\0{path.read_bytes().hex()}" for path in (_starter(definition, source), *overlay)
    ]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()


def _overlay(definition: RuntimeDefinition, source: Path) -> Path:
    """Files of the runtime's own, laid over what Debian's packages put into the image."""
    return source / definition.name / "root"


def _starter(definition: RuntimeDefinition, source: Path) -> Path:
    return source / "starters" / STARTERS[definition.starter]


def _up_to_date(image: BuiltImage | None, inputs: str, output: Path) -> bool:
    if image is None or image.inputs != inputs:
        return False
    path = output / image.file_name
    return path.is_file() and path.stat().st_size == image.size_bytes


def _check_tools() -> None:
    if os.geteuid() != 0:
        raise BuildError("building images needs root: run it as root, or through sudo")
    for tool, package in (("mmdebstrap", "mmdebstrap"), ("mkfs.erofs", "erofs-utils")):
        if shutil.which(tool) is None:
            raise BuildError(f"{tool} is missing: apt-get install {package}")


def _build(definition: RuntimeDefinition, inputs: str, source: Path, output: Path) -> BuiltImage:
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix=f".build-{definition.name}-", dir=output) as scratch:
        root = Path(scratch) / "root"
        packages = ", ".join(definition.packages) or "its essential packages"
        _say(f"{definition.name}: installing Debian {SUITE} with {packages}")
        _bootstrap(definition, root)
        _say(f"{definition.name}: preparing the root file system")
        _install_starter(definition, source, root)
        if _overlay(definition, source).is_dir():
            shutil.copytree(_overlay(definition, source), root, dirs_exist_ok=True, symlinks=True)
        _precompile(root)
        version = _run("chroot", str(root), *definition.version_command).strip()
        _strip(root)
        image = Path(scratch) / "image.erofs"
        # noinline_data: gVisor maps file data, which tail-packed blocks would not allow.
        _run(
            "mkfs.erofs", "--quiet", "-T0", "-U", IMAGE_UUID, "--all-root", "-E", "noinline_data", str(image), str(root)
        )
        image.chmod(0o444)
        digest = image_digest(image)
        built = BuiltImage(
            digest=digest,
            size_bytes=image.stat().st_size,
            inputs=inputs,
            version=version,
            definition=definition,
        )
        image.rename(output / built.file_name)
    _say(f"{definition.name}: {built.file_name}, {built.size_bytes >> 20} MiB, {time.monotonic() - began:.0f} s")
    return built


def _bootstrap(definition: RuntimeDefinition, root: Path) -> None:
    exclude = [f"--dpkgopt=path-exclude=/usr/share/{name}/*" for name in KEEP_OUT]
    include = [f"--include={','.join(definition.packages)}"] if definition.packages else []
    _run("mmdebstrap", "--quiet", "--variant=minbase", "--format=directory", *exclude, *include, SUITE, str(root))


def _install_starter(definition: RuntimeDefinition, source: Path, root: Path) -> None:
    folder = root / STARTER_FOLDER
    folder.mkdir(parents=True)
    shutil.copyfile(_starter(definition, source), folder / STARTERS[definition.starter])


def _precompile(root: Path) -> None:
    python = root / "usr/bin/python3"
    if not python.exists():
        return
    # Unchecked hashes: the root is read-only, so no source is ever newer than its code.
    for folder in sorted(root.glob("usr/lib/python3*")):
        inside = f"/{folder.relative_to(root)}"
        compile_all = ("-I", "-m", "compileall", "-qq", "--invalidation-mode", "unchecked-hash", "-j0", "-f", inside)
        _run("chroot", str(root), "/usr/bin/python3", *compile_all)


def _strip(root: Path) -> None:
    for doomed in (*(root / path for path in STRIP), *(path for each in STRIP_PATTERNS for path in root.glob(each))):
        if doomed.is_dir() and not doomed.is_symlink():
            shutil.rmtree(doomed)
        else:
            doomed.unlink(missing_ok=True)
    for point in ("dev", "tmp", "run", "proc", "sys"):
        for entry in (root / point).iterdir():
            if entry.is_dir() and not entry.is_symlink():
                shutil.rmtree(entry)
            else:
                entry.unlink()
    for point in MOUNT_POINTS:
        (root / point).mkdir(exist_ok=True)
    for path in root.rglob("*"):
        if path.is_file() and not path.is_symlink() and path.stat().st_mode & 0o6000:
            path.chmod(path.stat().st_mode & 0o777)
    _write(root / "etc/hostname", b"sandbox\n")
    _write(root / "etc/hosts", b"127.0.0.1 localhost sandbox\n::1 localhost\n")
    (root / "etc/resolv.conf").unlink(missing_ok=True)


def _run(*command: str) -> str:
    environment = {"PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C.UTF-8", "SOURCE_DATE_EPOCH": EPOCH}
    environment |= {name: value for name, value in os.environ.items() if name.lower().endswith("_proxy")}
    try:
        done = subprocess.run(
            command, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            timeout=BUILD_TIMEOUT, check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired as error:
        raise BuildError(f"{command[0]} took more than {BUILD_TIMEOUT:.0f} s") from error
    if done.returncode != 0:
        tail = done.stdout.decode(errors="replace").strip()[-2000:]
        raise BuildError(f"{command[0]} failed with {done.returncode}: {tail}")
    return done.stdout.decode(errors="replace")


def _write(path: Path, data: bytes) -> None:
    staged = path.with_name(f".{path.name}.new")
    staged.write_bytes(data)
    staged.rename(path)


@contextmanager
def _locked(folder: Path) -> Generator[None]:
    with (folder / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; 0 when every image is there."""
    parser = argparse.ArgumentParser(
        prog="python -m crucible_executor.build_images", description="Build the root images of the runtimes."
    )
    parser.add_argument("--source", type=Path, default=Path("deploy/runtimes"), help="folder of the runtimes' data")
    parser.add_argument("--output", type=Path, default=DEFAULT_IMAGES_DIR, help="folder of the images")
    chosen = parser.parse_args(arguments)
    os.umask(0o022)  # an image's hash does not depend on who builds it
    try:
        build_all(chosen.source, chosen.output)
    except (BuildError, RuntimeDataError, OSError) as error:
        print(f"images: {error}", file=sys.stderr)  # noqa: T201 - the command's one error line
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
