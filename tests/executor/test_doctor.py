"""The doctor finds this machine fit, and names what is missing and what mends it where it is not."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from crucible_executor.doctor import run_checks
from crucible_executor.sandbox.gvisor.driver import GvisorConfig
from crucible_executor.sandbox.image import ImageStore


def test_a_fit_machine_passes_every_required_check(sandbox_config: GvisorConfig, images: ImageStore) -> None:
    checks = run_checks(images.folder, sandbox_config.state_root)
    assert [check for check in checks if check.required and not check.passed] == []
    found = {check.name: check.detail for check in checks}
    assert "version" in found["control groups"]
    assert {"runtime python", "runtime bash", "runsc", "images", "root"} <= found.keys()
    assert found["runtime python"].startswith("3.11")


def test_missing_images_are_named_with_their_mend(tmp_path: Path, sandbox_config: GvisorConfig) -> None:
    checks = {check.name: check for check in run_checks(tmp_path / "none", sandbox_config.state_root)}
    assert not checks["images"].passed
    assert "build_images" in checks["images"].remedy
    assert not [name for name in checks if name.startswith("runtime ")]


def test_a_missing_runsc_is_named_with_its_mend(
    monkeypatch: pytest.MonkeyPatch, sandbox_config: GvisorConfig, images: ImageStore
) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    checks = {check.name: check for check in run_checks(images.folder, sandbox_config.state_root)}
    assert (checks["runsc"].passed, checks["setpriv"].passed) == (False, False)
    assert "install" in checks["runsc"].remedy


def test_the_command_prints_json(images: ImageStore) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "crucible_executor.doctor", "--json"],
        env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "CRUCIBLE_RUNTIMES_DIR": str(images.folder)},
        capture_output=True,
        check=True,
    )
    assert {check["name"] for check in json.loads(done.stdout)} >= {"root", "runsc", "runtime bash"}
