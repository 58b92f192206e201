"""What a stack is started with: ports, Jaeger, the client's addresses, log bounds."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from crucible_local import logfiles
from crucible_local.client_config import remove_client_config, write_client_config
from crucible_local.confinement import first_closed
from crucible_local.jaeger import JaegerError, require_jaeger
from crucible_local.options import NOBODY, Ports, StackOptions
from crucible_testkit import scratch_folder

ADDRESSES = {"gateway": "http://127.0.0.1:8080", "scheduler": "127.0.0.1:8081", "store": "127.0.0.1:8082", "nats": "x"}


def test_default_ports_are_the_documented_ones() -> None:
    assert Ports.choose(None, None) == Ports(8080, 8081, 8082, 8083, 8091, 8092, 8093, 16686, 4318)


def test_ports_move_together_and_the_gateway_alone() -> None:
    assert Ports.choose(9000, None) == Ports(9000, 9001, 9002, 9003, 9011, 9012, 9013, 9020, 9021)
    assert Ports.choose(None, 80) == Ports(80, 8081, 8082, 8083, 8091, 8092, 8093, 16686, 4318)


def test_free_ports_are_all_different() -> None:
    ports = Ports.choose(0, None)
    ports.require_free(jaeger=True)
    assert len(set(vars(ports).values())) == len(vars(ports))


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may become another user")
def test_code_that_an_account_cannot_read_is_told() -> None:
    with scratch_folder() as folder:
        for name, mode in (("open", 0o644), ("closed", 0o640)):
            (folder / name).touch()
            (folder / name).chmod(mode)
        assert first_closed([str(folder / "open")], NOBODY) == ""
        assert first_closed([str(folder / "open"), str(folder / "closed")], NOBODY) == str(folder / "closed")


def test_options_survive_the_way_to_the_supervisor(tmp_path: Path) -> None:
    options = StackOptions(tmp_path, Ports.choose(9000, 80), jaeger=True, client_config=tmp_path / "client.toml")
    assert StackOptions.load(options.dump()) == options


def test_a_missing_jaeger_is_said_before_anything_starts(tmp_path: Path) -> None:
    with pytest.raises(JaegerError, match="CRUCIBLE_JAEGER names /no/such"):
        require_jaeger({"CRUCIBLE_JAEGER": "/no/such", "PATH": "/nowhere"})
    answer = subprocess.run(
        [sys.executable, "-m", "crucible_client.cli", "up", "--jaeger", "--data", str(tmp_path / "data")],
        env={"PATH": "/nowhere", "HOME": str(tmp_path)}, capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    assert answer.returncode == 2
    assert "needs a `jaeger` binary" in answer.stderr
    assert not (tmp_path / "data").exists()


def test_the_clients_addresses_are_written_and_removed(tmp_path: Path) -> None:
    path = tmp_path / "a/crucible/client.toml"
    write_client_config(path, ADDRESSES, None)
    assert 'gateway = "http://127.0.0.1:8080"' in path.read_text()
    remove_client_config(path)
    assert not path.exists()


def test_addresses_that_somebody_wrote_are_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "client.toml"
    path.write_text('scheduler = "far.away:1"\n')
    write_client_config(path, ADDRESSES, None)
    remove_client_config(path)
    assert path.read_text() == 'scheduler = "far.away:1"\n'


def test_a_long_log_is_cut_under_its_writer(tmp_path: Path) -> None:
    log = tmp_path / "x.log"
    writer = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    try:
        os.write(writer, b"old\n" * 100)
        logfiles.cap(log, limit=100)
        os.write(writer, b"new\n")
    finally:
        os.close(writer)
    assert log.read_text() == "new\n"
    assert (tmp_path / "x.log.1").read_text() == "old\n" * 100
    assert logfiles.tail(log) == "new"
