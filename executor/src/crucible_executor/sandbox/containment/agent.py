"""The agent: a static program of some 400 bytes that makes the system calls the host asks for, then becomes another.

It is the first process of a sandbox, executed from a descriptor of the host's (`--exec-fd`). It reads one script of
`SCRIPT_BYTES` from descriptor 3 into its memory at `BASE`, makes the script's calls one after the other, writes the
first `REPORT_BYTES` of that memory back, and executes the command that stands in its own arguments, with the same
arguments, environment, descriptors and process id. It judges nothing, and nothing of it is left in what it becomes.

A script is a memory image. At `REPORT_BYTES` begin the calls, `CALL_BYTES` each: eight words, which are the call's
number, six arguments, and one that says, when it is not 0, that the first argument is an address and what is meant
stands there. A negative number ends them. The result of the n-th call, as the kernel gives it, goes to `BASE + 8 * n`.

It is machine code, for x86-64: no machine needs a compiler for it and no image an interpreter, and to start one would
take longer than all that is tried.
"""

from __future__ import annotations

import fcntl
import os
import platform
import struct
from typing import Final

BASE: Final = 0x1000_0000
SCRIPT_BYTES: Final = 0x8000
REPORT_BYTES: Final = 0x3000
CALL_BYTES: Final = 64
CHANNEL: Final = 3
FAILED: Final = 70
"""Its exit code when it cannot read, answer or execute."""
FILE_NAME: Final = "crucible-agent"
"""Of the file in memory that it is executed from: no image has it."""

_TEXT: Final = 0x40_0000
_PAGE: Final = 0x1000
_FILE_HEADER: Final = struct.Struct("<16sHHIQQQIHHHHHH")
_SEGMENT: Final = struct.Struct("<IIQQQQQQ")
_READ, _WRITE, _EXECUTE = 4, 2, 1


def _le(value: int) -> str:
    return struct.pack("<I", value).hex()


# The operands of jumps are distances: a line more or less between a jump and its label changes them.
_CODE: Final = bytes.fromhex(
    "4889e5"  # start: mov rbp, rsp
    f"41bc{_le(BASE)}"  # mov r12d, BASE
    f"41bd{_le(SCRIPT_BYTES)}"  # mov r13d, SCRIPT_BYTES
    "31c0"  # read: xor eax, eax (read)
    f"bf{_le(CHANNEL)}"  # mov edi, CHANNEL
    "4c89e6"  # mov rsi, r12
    "4c89ea"  # mov rdx, r13
    "0f05"  # syscall
    "4885c0"  # test rax, rax
    "0f8e98000000"  # jle fail
    "4901c4"  # add r12, rax
    "4929c5"  # sub r13, rax
    "75e0"  # jnz read
    f"41bc{_le(BASE + REPORT_BYTES)}"  # mov r12d, BASE + REPORT_BYTES
    f"41bd{_le(BASE)}"  # mov r13d, BASE
    "498b0424"  # call: mov rax, [r12]
    "4885c0"  # test rax, rax
    "7839"  # js done
    "498b7c2408"  # mov rdi, [r12 + 8]
    "498b742410"  # mov rsi, [r12 + 16]
    "498b542418"  # mov rdx, [r12 + 24]
    "4d8b542420"  # mov r10, [r12 + 32]
    "4d8b442428"  # mov r8, [r12 + 40]
    "4d8b4c2430"  # mov r9, [r12 + 48]
    "41837c243800"  # cmp dword [r12 + 56], 0
    "7403"  # je now
    "488b3f"  # mov rdi, [rdi]
    "0f05"  # now: syscall
    "49894500"  # mov [r13], rax
    "4983c440"  # add r12, CALL_BYTES
    "4983c508"  # add r13, 8
    "ebbe"  # jmp call
    f"41bc{_le(BASE)}"  # done: mov r12d, BASE
    f"41bd{_le(REPORT_BYTES)}"  # mov r13d, REPORT_BYTES
    "b801000000"  # write: mov eax, 1 (write)
    f"bf{_le(CHANNEL)}"  # mov edi, CHANNEL
    "4c89e6"  # mov rsi, r12
    "4c89ea"  # mov rdx, r13
    "0f05"  # syscall
    "4885c0"  # test rax, rax
    "7e1f"  # jle fail
    "4901c4"  # add r12, rax
    "4929c5"  # sub r13, rax
    "75e1"  # jnz write
    "488b4d00"  # mov rcx, [rbp] (the number of its arguments)
    "488d7508"  # lea rsi, [rbp + 8] (its arguments)
    "488b3e"  # mov rdi, [rsi]
    "488d54cd10"  # lea rdx, [rbp + 8 * rcx + 16] (the environment)
    "b83b000000"  # mov eax, 59 (execve)
    "0f05"  # syscall
    "b83c000000"  # fail: mov eax, 60 (exit)
    f"bf{_le(FAILED)}"  # mov edi, FAILED
    "0f05"  # syscall
)


def executable() -> bytes:
    """The agent as an ELF file: its code, and beside it the memory that takes the script."""
    code_at = _FILE_HEADER.size + 2 * _SEGMENT.size
    size = code_at + len(_CODE)
    identity = b"\x7fELF" + bytes((2, 1, 1))  # 64 bits, little-endian, the only version
    header = _FILE_HEADER.pack(
        identity, 2, 62, 1, _TEXT + code_at, _FILE_HEADER.size, 0, 0, _FILE_HEADER.size, _SEGMENT.size, 2, 0, 0, 0
    )
    code = _SEGMENT.pack(1, _READ | _EXECUTE, 0, _TEXT, _TEXT, size, size, _PAGE)
    memory = _SEGMENT.pack(1, _READ | _WRITE, 0, BASE, BASE, 0, SCRIPT_BYTES, _PAGE)
    return header + code + memory + _CODE


def open_agent() -> int | None:
    """A descriptor of the agent, to be read and executed and by nobody changed; None on a machine that it is not for.

    Raises OSError.
    """
    if platform.machine() != "x86_64":
        return None
    writable = os.memfd_create(FILE_NAME, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        os.write(writable, executable())
        os.fchmod(writable, 0o555)
        fcntl.fcntl(
            writable,
            fcntl.F_ADD_SEALS,
            fcntl.F_SEAL_WRITE | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_SEAL,
        )
        return os.open(f"/proc/self/fd/{writable}", os.O_RDONLY | os.O_CLOEXEC)
    finally:
        os.close(writable)
