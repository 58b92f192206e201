"""One program in one sandbox, from boot to clean-up: the four steps of the port as one call."""

from __future__ import annotations

from crucible_executor.sandbox.port import OutputSink, Program, SandboxDriver, SandboxLimits, Verdict


async def run_program(driver: SandboxDriver, program: Program, limits: SandboxLimits, sink: OutputSink) -> Verdict:
    """Boot a sandbox, run the program in it and leave nothing behind; raises what the port's steps raise."""
    sandbox = await driver.boot(program.runtime, disk_bytes=limits.disk_bytes)
    try:
        await sandbox.deliver(program, limits, sink)
        return await sandbox.observe()
    finally:
        await sandbox.close()
