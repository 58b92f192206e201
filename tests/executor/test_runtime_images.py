"""Runtimes as data, their images, and that only what works is offered."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from crucible_executor.build_images import build_all
from crucible_executor.sandbox.gvisor.driver import GvisorConfig, GvisorDriver, open_driver
from crucible_executor.sandbox.image import INDEX_NAME, ImageStore, image_digest
from crucible_executor.sandbox.port import Cause, SandboxFault
from crucible_executor.sandbox.runtimes import RuntimeDataError, load_definitions

from .conftest import MIB, RUNTIMES_SOURCE, Run


async def test_both_runtimes_are_offered_after_their_self_test(driver: GvisorDriver) -> None:
    offerable = await driver.offerable_runtimes()
    assert offerable.refused == {}
    offers = {offer.name: offer for offer in offerable.offers}
    assert set(offers) == {"python", "bash"}
    assert offers["python"].version.startswith("3.11.")
    assert offers["bash"].version.startswith("5.2.")
    for offer in offers.values():
        default = offer.default_limits
        assert (default.wall_time, default.cpu_time, default.memory_bytes) == (10, 10, 256 * MIB)
        assert (default.processes, default.open_files, default.output_bytes, default.disk_bytes) == (
            64,
            256,
            MIB,
            64 * MIB,
        )


async def test_a_runtime_that_fails_its_self_test_is_not_offered(
    tmp_path: Path, images: ImageStore, sandbox_config: GvisorConfig
) -> None:
    index = json.loads((images.folder / INDEX_NAME).read_text())
    index["runtimes"]["python"]["definition"]["self_test"]["stdout"] = "something else"
    for image in images.index().runtimes.values():
        (tmp_path / image.file_name).hardlink_to(images.folder / image.file_name)
    (tmp_path / INDEX_NAME).write_text(json.dumps(index))
    async with open_driver(sandbox_config, ImageStore(tmp_path)) as driver:
        offerable = await driver.offerable_runtimes()
    assert [offer.name for offer in offerable.offers] == ["bash"]
    assert "self-test" in offerable.refused["python"]


def test_a_built_image_is_not_built_again(images: ImageStore) -> None:
    before = {path.name: path.stat().st_mtime_ns for path in images.folder.glob("*.erofs")}
    index = build_all(RUNTIMES_SOURCE, images.folder)
    assert index == images.index()
    assert {path.name: path.stat().st_mtime_ns for path in images.folder.glob("*.erofs")} == before


def test_an_image_is_named_by_its_hash_and_read_only(images: ImageStore) -> None:
    image, path = images.find("bash")
    assert path.name == f"{image.digest.removeprefix('sha256:')}.erofs"
    assert image_digest(path) == image.digest
    assert path.stat().st_mode & 0o777 == 0o444


def test_an_image_that_was_changed_is_refused(tmp_path: Path, images: ImageStore) -> None:
    image, path = images.find("bash")
    shutil.copyfile(images.folder / INDEX_NAME, tmp_path / INDEX_NAME)
    shutil.copyfile(path, tmp_path / image.file_name)
    store = ImageStore(tmp_path)
    assert store.find("bash")[0] == image
    with (tmp_path / image.file_name).open("r+b") as file:
        file.seek(5000)
        file.write(b"changed")
    with pytest.raises(SandboxFault, match="not what was built") as caught:
        store.find("bash")
    assert caught.value.cause is Cause.IMAGE


def test_no_index_is_an_image_fault(tmp_path: Path) -> None:
    with pytest.raises(SandboxFault, match="no image was built") as caught:
        ImageStore(tmp_path).find("python")
    assert caught.value.cause is Cause.IMAGE


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("default_entrypoint", "default_entry"), "default_entry"),
        (("wall_time = 10", "wall_time = -1"), "wall_time"),
        (('starter = "python"', 'starter = "perl"'), "starter"),
        (('name = "python"', 'name = "snake"'), "folder"),
    ],
)
def test_broken_data_names_its_file_and_field(tmp_path: Path, change: tuple[str, str], message: str) -> None:
    text = (RUNTIMES_SOURCE / "python" / "runtime.toml").read_text()
    (tmp_path / "python").mkdir()
    (tmp_path / "python" / "runtime.toml").write_text(text.replace(*change, 1))
    with pytest.raises(RuntimeDataError, match=message) as caught:
        load_definitions(tmp_path)
    assert "python/runtime.toml" in str(caught.value)


async def test_the_root_holds_no_package_manager_and_no_set_user_id(run: Run) -> None:
    source = """
find / -xdev -type f -perm /6000 2>/dev/null
ls -d /var/lib/dpkg /var/lib/apt /usr/bin/apt /usr/bin/dpkg /etc/apt 2>/dev/null
find / -xdev -type f -newermt 2025-01-02 2>/dev/null
cat /etc/hostname
"""
    ran = await run(source, runtime="bash")
    assert ran.stdout == b"sandbox\n"


async def test_the_standard_library_is_compiled(run: Run) -> None:
    source = "import json, asyncio\nfor m in (json, asyncio): print(m.__cached__, open(m.__cached__, 'rb').read(8)[4])"
    ran = await run(source)
    # Flags 1: a hash that is not checked against the source.
    assert [line.split()[1] for line in ran.stdout.decode().splitlines()] == ["1", "1"]
