"""Ctrl-C, sent to a program of the tests."""

from __future__ import annotations

import signal
import subprocess
import sys


def printed_after_interrupt(code: str) -> str:
    """What the program prints once it was interrupted, which it is after it has printed "ready"."""
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
            process.send_signal(signal.SIGINT)
            return process.communicate(timeout=300)[0]
        finally:
            process.kill()
