"""``python -m tests.helpers.idle``: a process that does nothing until it is ended."""

import signal

signal.pause()
