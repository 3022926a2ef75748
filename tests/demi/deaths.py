"""Ways for a process to crash, for tests of crashes."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

from demi.processes.recorder import doing


def run(death: str, *arguments: str) -> None:
    """Crash in this way, or do something harmless."""
    with doing("trying this"):
        match death:
            case "hang":
                time.sleep(100)
            case "exit":
                os._exit(3)
            case "words":
                print("Intel MKL FATAL ERROR: no such instruction", file=sys.stderr, flush=True)
                os.abort()
            case "raise":
                raise ValueError("ordinary")
            case "write":
                Path(arguments[0]).write_text(str(os.getpid()))
            case "nothing":
                pass
            case name:
                os.kill(os.getpid(), signal.Signals[name])
