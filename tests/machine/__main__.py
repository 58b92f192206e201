"""`python tests/machine [COMMAND ...]`: runs a command in an emulated machine with control groups of version 2 alone.

Without a command it runs the tests in the file `selection`: those that depend on control groups.

The machine is QEMU's with Debian's kernel. Its root is this machine's own, read-only, with all writes kept in memory:
the same Python, environment, images and `runsc`, and nothing to install or to copy. Nothing but the console comes out.
What the command writes is printed as it comes; the exit code is the command's.

It needs qemu-system-x86_64, and apt for kernel and busybox, which are kept in $CRUCIBLE_MACHINE_DIR. Without hardware
virtualization everything in it is some ten times slower: $CRUCIBLE_TEST_SLOWNESS tells tests so.
"""

from __future__ import annotations

import io
import lzma
import os
import re
import shlex
import shutil
import stat
import subprocess
import sys
import threading
from pathlib import Path
from typing import Final

FOLDER: Final = Path(os.environ.get("CRUCIBLE_MACHINE_DIR", "/var/cache/crucible/machine"))
INIT: Final = Path(__file__).parent / "init"
SELECTION: Final = Path(__file__).parent / "selection"
TESTS: Final = (
    *(sys.executable, "-m", "pytest", f"@{SELECTION}", "-n", "2"),
    *("-v", "-p", "no:cacheprovider", "--timeout=300", "--durations=10"),
)
LONGEST_SECONDS: Final = 1800
"""After this the machine is ended, whatever it does; one on two quiet cores takes a tenth of it."""
KERNEL_PACKAGE: Final = "linux-image-amd64"
BUSYBOX_PACKAGE: Final = "busybox-static"
MODULES: Final = (
    "virtio_ring", "virtio", "virtio_pci_modern_dev", "virtio_pci_legacy_dev", "virtio_pci",
    "netfs", "fscache", "9pnet", "9pnet_virtio", "9p", "overlay",
)  # fmt: skip
"""What a root over 9p needs, each after those it builds on; what a kernel has built in is not among its modules."""
MEMORY_MIB: Final = 3072
LAST_LINE: Final = re.compile(r"machine: exit (\d+)\s*$")
FORWARDED: Final = re.compile(r"CRUCIBLE_|CI$|PATH$|HOME$|VIRTUAL_ENV$")
"""Environment variables that the command gets."""
EMULATED_SLOWNESS: Final = "10"


class MachineError(Exception):
    """The machine cannot be made or did not tell how the command ended."""


def unpacked(package: str) -> Path:
    """A folder with the package's files, downloaded once."""
    folder = FOLDER / package
    if not folder.exists():
        scratch = FOLDER / f"{package}.new"
        shutil.rmtree(scratch, ignore_errors=True)
        scratch.mkdir(parents=True)
        # As root apt would download as another user, who may not write here.
        called("apt-get", "download", "-qq", "-o", "APT::Sandbox::User=root", package, cwd=scratch)
        (archive,) = scratch.glob("*.deb")
        called("dpkg-deb", "--extract", str(archive), str(scratch))
        archive.unlink()
        scratch.rename(folder)
    return folder


def kernel_package() -> str:
    """The newest kernel's package, which `linux-image-amd64` depends on."""
    told = called("apt-cache", "depends", KERNEL_PACKAGE)
    found = re.search(r"Depends: (linux-image-\S+)", told)
    if found is None:
        raise MachineError(f"apt knows no {KERNEL_PACKAGE}: run apt-get update")
    return found.group(1)


def called(*command: str, cwd: Path | None = None) -> str:
    """Its output; raises MachineError with all it said when it fails."""
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)
    if done.returncode:
        raise MachineError(f"{' '.join(command)}: {done.stdout}{done.stderr}")
    return done.stdout


def initramfs(kernel: Path, busybox: Path, command: str) -> bytes:
    """The archive that the kernel unpacks and starts `/init` in."""
    entries: list[tuple[str, int, bytes]] = [
        (name, stat.S_IFDIR | 0o755, b"")
        for name in ("bin", "dev", "lower", "modules", "proc", "root", "sys", "written")
    ]
    entries.append(("bin/busybox", stat.S_IFREG | 0o755, (busybox / "bin/busybox").read_bytes()))
    entries.append(("init", stat.S_IFREG | 0o755, INIT.read_bytes()))
    entries.append(("command", stat.S_IFREG | 0o644, command.encode()))
    present: list[str] = []
    for name in MODULES:
        for path in (kernel / "lib/modules").rglob(f"{name}.ko*"):
            data = path.read_bytes()
            present.append(f"{name}.ko")
            data = lzma.decompress(data) if path.suffix == ".xz" else data
            entries.append((f"modules/{name}.ko", stat.S_IFREG | 0o644, data))
    entries.append(("modules/order", stat.S_IFREG | 0o644, "\n".join(present).encode()))
    return archive(entries)


def archive(entries: list[tuple[str, int, bytes]]) -> bytes:
    """A cpio archive in the one format that kernels take."""
    out = io.BytesIO()
    for number, (name, mode, data) in enumerate([*entries, ("TRAILER!!!", 0, b"")], start=1):
        fields = (number, mode, 0, 0, 1, 0, len(data), 0, 0, 0, 0, len(name) + 1, 0)
        out.write(b"070701" + b"".join(b"%08x" % field for field in fields) + name.encode() + b"\0")
        out.write(bytes(-out.tell() % 4) + data)
        out.write(bytes(-out.tell() % 4))
    return out.getvalue()


def accelerated() -> bool:
    """Whether this processor can run a machine by itself; a device alone is no proof of that."""
    told = re.search(r"^flags.*\b(vmx|svm)\b", Path("/proc/cpuinfo").read_text(encoding="utf-8"), re.MULTILINE)
    return told is not None and os.access("/dev/kvm", os.R_OK | os.W_OK)


def script(command: list[str], *, slow: bool) -> str:
    """What the machine runs once its root is there."""
    forwarded = {name: value for name, value in os.environ.items() if FORWARDED.match(name)}
    if slow:
        forwarded.setdefault("CRUCIBLE_TEST_SLOWNESS", EMULATED_SLOWNESS)
    exports = [f"export {name}={shlex.quote(value)}" for name, value in forwarded.items()]
    # Through a pipe: what sees a terminal moves its cursor about.
    told = f'{{ {shlex.join(command)}; echo "machine: exit $?"; }} 2>&1 | cat'
    # Not over /tmp: this very tree may lie there.
    temporary = "mkdir -m 1777 /run/tmp && export TMPDIR=/run/tmp"
    lines = [*exports, temporary, f"cd {shlex.quote(str(Path.cwd()))}", told]
    return "\n".join((*lines, "echo o >/proc/sysrq-trigger", "sleep 60", ""))


def emulator(kernel: Path, initial: Path, *, fast: bool) -> list[str]:
    """The command line of QEMU."""
    (image,) = (kernel / "boot").glob("vmlinuz-*")
    cores = min(2, os.cpu_count() or 1)
    return [
        "qemu-system-x86_64",
        *(("-accel", "kvm", "-cpu", "host") if fast else ("-accel", "tcg,thread=multi,tb-size=512", "-cpu", "max")),
        *("-m", str(MEMORY_MIB), "-smp", str(cores), "-no-reboot", "-nodefaults", "-display", "none"),
        *("-serial", "stdio", "-kernel", str(image), "-initrd", str(initial)),
        *("-append", "console=ttyS0 quiet panic=-1 mitigations=off cgroup_no_v1=all"),
        *("-virtfs", "local,path=/,mount_tag=host,security_model=none,readonly=on,multidevs=remap"),
        *("-object", "rng-random,id=random,filename=/dev/urandom", "-device", "virtio-rng-pci,rng=random"),
    ]


def run(command: list[str]) -> int:
    """Runs the command in the machine; returns its exit code."""
    fast = accelerated()
    kernel, busybox = unpacked(kernel_package()), unpacked(BUSYBOX_PACKAGE)
    initial = FOLDER / f"initramfs-{os.getpid()}"
    initial.write_bytes(initramfs(kernel, busybox, script(command, slow=not fast)))
    # However this process ends, the machine ends with it.
    words = ["setpriv", "--pdeathsig", "KILL", *emulator(kernel, initial, fast=fast)]
    try:
        with subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE) as machine:
            alarm = threading.Timer(LONGEST_SECONDS, machine.kill)
            alarm.start()
            try:
                code = shown(machine)
                late = not alarm.is_alive()
            finally:
                alarm.cancel()
                machine.kill()
    finally:
        initial.unlink()
    if code is None:
        raise MachineError(
            f"the command did not end within {LONGEST_SECONDS} s" if late else "it went down before the command ended"
        )
    return code


def shown(machine: subprocess.Popen[bytes]) -> int | None:
    """Prints what the machine says, as it comes; how the command ended, None when the machine ended before it."""
    assert machine.stdout is not None
    for line in machine.stdout:
        text = line.decode(errors="replace").replace("\r\n", "\n")
        if ended := LAST_LINE.search(text):
            return int(ended.group(1))
        sys.stdout.write(text)
        sys.stdout.flush()
    return None


if __name__ == "__main__":
    try:
        raise SystemExit(run(sys.argv[1:] or list(TESTS)))
    except (MachineError, OSError) as error:
        sys.exit(f"machine: {error}")
