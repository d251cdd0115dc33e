"""Processes that kill themselves, with SIGKILL, at a random line of fedjx: as a crash does, but the same each time."""

import os
import subprocess
import sys
import textwrap

from tests.data.stores import ROOT

# fork: the program is imported once, not once a victim. Its process has no threads, so it may.
_HEADER = """
import os, random, signal, sys

def lines_of(act, limit=None):
    count = 0
    def on_line(frame, event, argument):
        nonlocal count
        if event == "line":
            count += 1
            if count == limit:
                os.kill(os.getpid(), signal.SIGKILL)
        return on_line
    def on_call(frame, event, argument):
        return on_line if "/fedjx/data/" in frame.f_code.co_filename else None
    sys.settrace(on_call)
    try:
        act()
    finally:
        sys.settrace(None)
    return count

def victim(act, limit):
    child = os.fork()
    if not child:
        lines_of(act, limit)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
"""


def outcomes(code, directory):
    """Runs a program, which may call `lines_of(act)` and `victim(act, line)`, and returns the lines that it prints."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-W", "ignore", "-c", _HEADER + textwrap.dedent(code)]
    result = subprocess.run(command, cwd=directory, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    return result.stdout.splitlines()
