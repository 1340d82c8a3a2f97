"""The example's pipeline, which halts where a test wants to kill it: behind the first checkpoint of each process.

Run as ``python halted_run.py ARGUMENTS OF THE EXAMPLE``. A process that has published its first checkpoint writes a
line to standard output and waits for its end; nothing else is written there. Worker processes import this script anew,
and halt too.
"""

from __future__ import annotations

import os
import signal
import sys
from contextlib import redirect_stdout
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2] / "examples"))

import vipriors_kinetics
from vidfuse.training import state

_save = state.save_checkpoint


def save_and_halt(path, content):
    _save(path, content)
    if Path(path).name != "last.pt":  # the best epoch's is written before it
        return
    os.write(1, b"halted\n")
    while True:
        signal.pause()


if __name__ in ("__main__", "__mp_main__"):  # the script and its workers, not what merely imports it
    state.save_checkpoint = save_and_halt

if __name__ == "__main__":
    with redirect_stdout(sys.stderr):
        vipriors_kinetics.main(sys.argv[1:])
