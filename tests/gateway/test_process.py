"""The gateway as a process: its settings, its start, its end."""

import os
import signal
import socket
import subprocess
import sys
import time

import httpx

from crucible_testkit import free_port


def start(**environment: str) -> subprocess.Popen[str]:
    known = {key: value for key, value in os.environ.items() if not key.startswith(("CRUCIBLE_", "OTEL_"))}
    return subprocess.Popen(
        [sys.executable, "-m", "crucible_gateway"],
        env={**known, **environment},
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def test_it_serves_without_its_upstreams_and_stops_on_sigterm() -> None:
    port = free_port()
    away = f"127.0.0.1:{free_port()}"
    process = start(CRUCIBLE_HTTP_LISTEN=f"127.0.0.1:{port}", CRUCIBLE_SCHEDULER_URL=away, CRUCIBLE_STORE_URL=away)
    try:
        url = f"http://127.0.0.1:{port}"
        deadline = time.monotonic() + 20
        while True:
            try:
                assert httpx.get(f"{url}/healthz").status_code == 200
                break
            except httpx.ConnectError:
                assert process.poll() is None
                assert time.monotonic() < deadline
                time.sleep(0.05)
        for path in ("/readyz", "/v1/runtimes"):
            assert httpx.get(url + path, timeout=30).status_code == 503
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate(timeout=20)
        assert process.returncode == 0, errors
        assert '"event": "http.request"' in errors
        assert "Traceback" not in errors
    finally:
        process.kill()
        process.communicate()


def test_an_address_in_use_is_one_clear_line() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        _, errors = (process := start(CRUCIBLE_HTTP_LISTEN=address)).communicate(timeout=20)
    assert process.returncode == 70
    assert f"cannot listen on {address}" in errors


def test_a_bad_setting_is_named() -> None:
    _, errors = (process := start(CRUCIBLE_HTTP_LISTEN="nonsense")).communicate(timeout=20)
    assert process.returncode == 78
    assert "CRUCIBLE_HTTP_LISTEN" in errors
