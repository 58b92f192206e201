"""What people see of a stack: its start line by line, its state as a table."""

import json
import pwd
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from rich.console import Console
from rich.markup import escape

from crucible_local import kernel, logfiles
from crucible_local.doctor import Check
from crucible_local.probes import answers_ok
from crucible_local.state import ProcessState, StackState

GOOD = ("ready", "done")


@dataclass
class Progress:
    """Prints each process once it is ready, and the building of images as it goes on."""

    console: Console
    _seen: dict[str, str] = field(default_factory=dict[str, str])

    def __call__(self, state: StackState) -> None:
        """Takes each new state."""
        for process in state.processes:
            self._show(process)

    def _show(self, process: ProcessState) -> None:
        if process.condition in GOOD and process.seconds:
            line = f"[green]✓[/green] {process.name:10} {process.seconds:5.1f} s  {process.address or process.detail}"
        elif process.condition in ("restarting", "failed"):
            line = f"[red]✗[/red] {process.name:10} {process.detail}"
        elif process.kind == "job" and process.condition == "starting" and (words := _last_words(process)):
            line = f"  {process.name:10} [dim]{words}[/dim]"
        else:
            return
        if self._seen.get(process.name) != line:
            self._seen[process.name] = line
            self.console.print(line, highlight=False, soft_wrap=True)


def _last_words(process: ProcessState) -> str:
    """The last line of a job's log that is for people."""
    line = logfiles.tail(Path(process.log), lines=1)
    return "" if line.startswith("{") else escape(line)


def show_table(console: Console, rows: Sequence[Sequence[str]], *, right: Sequence[int] = ()) -> None:
    """Aligned columns, those of `right` to the right; long lines stay whole, for they are copied and piped."""
    widths = [max(len(cell) for cell in column) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = (c.rjust(w) if i in right else c.ljust(w) for i, (c, w) in enumerate(zip(row, widths, strict=True)))
        console.print(escape("  ".join(cells).rstrip()), highlight=False, soft_wrap=True)


def show_status(console: Console, state: StackState, processes: list[ProcessState]) -> None:
    """One line per process, asked just now whether it is ready."""
    rows = [("process", "state", "pid", "user", "restarts", "address", "log")]
    for process in processes:
        if process.kind == "daemon":
            pid = str(process.identity.pid) if process.identity else "-"
            user, restarts = user_of(process) or "-", str(process.restarts)
            rows.append((process.name, condition_now(process), pid, user, restarts, process.address, process.log))
    show_table(console, rows)
    console.print(f"phase {state.phase}, supervisor {state.supervisor.pid}", highlight=False)


def condition_now(process: ProcessState) -> str:
    """The supervisor's view, and the process's own where it answers such questions."""
    if process.condition == "ready" and process.ready_url and not answers_ok(process.ready_url):
        return "unready"
    return process.condition


def user_of(process: ProcessState) -> str:
    """The system user that it runs as now; empty when it does not run."""
    uid = kernel.user_id(process.identity.pid) if process.identity else None
    if uid is None:
        return ""
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def status_json(state: StackState | None, processes: list[ProcessState]) -> str:
    """The same for programs."""
    answer = {
        "phase": state.phase if state else "stopped",
        "supervisorPid": state.supervisor.pid if state else None,
        "addresses": state.addresses if state else {},
        "processes": [
            {
                "name": process.name,
                "state": condition_now(process),
                "pid": process.identity.pid if process.identity else None,
                "user": user_of(process) or None,
                "address": process.address,
                "restarts": process.restarts,
                "log": process.log,
            }
            for process in processes
            if process.kind == "daemon"
        ],
    }
    return json.dumps(answer, indent=2)


def down_json(data: Path, *, was_running: bool, removed: bool) -> str:
    """What `down` did, for programs."""
    return json.dumps({"phase": "stopped", "data": str(data), "wasRunning": was_running, "removed": removed}, indent=2)


def show_checks(console: Console, checks: list[Check]) -> None:
    """One line per finding, and how to fix it."""
    for check in checks:
        mark = "[green]✓[/green]" if check.passed else "[red]✗[/red]" if check.required else "[yellow]![/yellow]"
        console.print(f"{mark} {check.name:18} {escape(check.detail)}", highlight=False, soft_wrap=True)
        if not check.passed and check.remedy:
            console.print(f"  {'':18} {escape(check.remedy)}", highlight=False, soft_wrap=True)


def checks_json(checks: list[Check]) -> str:
    """The same for programs."""
    return json.dumps([asdict(check) for check in checks], indent=2)
