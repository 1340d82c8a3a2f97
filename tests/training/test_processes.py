"""Worker processes: Ctrl-C ends them at once and in silence, and one that is ended from outside is an error."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from vidfuse.errors import VidfuseError
from vidfuse.training.processes import worker_processes

SCRIPT = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from test_processes import waits
from vidfuse.training.processes import worker_processes
if __name__ == "__main__":
    with worker_processes(1) as pool:
        pool.submit(waits, sys.argv[1]).result()
"""


def waits(path):
    Path(path).write_text(str(os.getpid()))
    time.sleep(1000)


def begun(path):
    while not (path.exists() and path.read_text()):
        time.sleep(0.01)
    return int(path.read_text())


def test_ctrl_c_ends_the_processes_and_they_print_nothing(tmp_path):
    """A terminal sends it to all of them."""
    (tmp_path / "script.py").write_text(SCRIPT)
    call = [sys.executable, str(tmp_path / "script.py"), str(tmp_path / "begun"), str(Path(__file__).parent)]
    with subprocess.Popen(call, start_new_session=True, stderr=subprocess.PIPE, text=True) as process:
        worker = begun(tmp_path / "begun")
        os.killpg(process.pid, signal.SIGINT)
        _, said = process.communicate()
    assert said.count("Traceback") == 1 and "\nKeyboardInterrupt" in said and "SpawnProcess" not in said
    with pytest.raises(ProcessLookupError):
        os.kill(worker, 0)


def test_a_process_that_is_ended_from_outside_is_an_error_that_says_so():
    with pytest.raises(VidfuseError, match="was ended from outside"), worker_processes(1) as pool:
        pool.submit(os._exit, 3).result()
