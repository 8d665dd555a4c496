"""Processes for which the operating system refuses some calls, without a library in between.

A seccomp filter answers the calls with an error. It holds for the process and its descendants, so
it is for a child: ``subprocess.Popen(..., preexec_fn=lambda: refuse(flock=errno.ENOLCK))``.
"""

from __future__ import annotations

import ctypes
import platform
import struct

# Linux's numbers of the calls, by machine.
_NUMBERS = {
    "x86_64": {"flock": (73,), "rename": (82, 264, 316), "link": (86, 265)},
    "aarch64": {"flock": (32,), "rename": (38, 276), "link": (37,)},
}
_PR_SET_NO_NEW_PRIVS = 38
_PR_SET_SECCOMP = 22
_FILTER_MODE = 2
_ALLOW = 0x7FFF0000
_ERROR = 0x00050000


class _Program(ctypes.Structure):
    _fields_ = [("length", ctypes.c_ushort), ("instructions", ctypes.c_void_p)]


def can_refuse() -> bool:
    """Are the numbers of this machine's calls known?"""
    return platform.system() == "Linux" and platform.machine() in _NUMBERS


def refuse(**errors: int) -> None:
    """Let the named calls (flock, rename, link) fail with these error numbers from now on.

    Raises OSError where the kernel does not allow filters.
    """
    load_number = struct.pack("HBBI", 0x20, 0, 0, 0)
    code = [load_number]
    for name, error in errors.items():
        for number in _NUMBERS[platform.machine()][name]:
            unless_equal_skip_one = struct.pack("HBBI", 0x15, 0, 1, number)
            code += [unless_equal_skip_one, struct.pack("HBBI", 0x06, 0, 0, _ERROR | error)]
    code.append(struct.pack("HBBI", 0x06, 0, 0, _ALLOW))
    content = ctypes.create_string_buffer(b"".join(code))
    program = _Program(len(code), ctypes.addressof(content))
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0):
        raise OSError(ctypes.get_errno(), "no_new_privs")
    if libc.prctl(_PR_SET_SECCOMP, _FILTER_MODE, ctypes.byref(program), 0, 0):
        raise OSError(ctypes.get_errno(), "seccomp")
