"""The progress bar: on a terminal, in a log file, and on a stderr that does not work."""

import os
import pty
import subprocess
import sys
import termios
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
WORK = """
from medgan_jax.progress import progress_bar
with progress_bar(200, desc="training", unit="step", initial=100) as bar:
    for _ in range(100):
        bar.update()
        bar.set_postfix({"loss": "0.31"}, refresh=False)
    bar.write("a line")
print("done")
"""


def work(stderr, code=WORK):
    command = [sys.executable, "-c", code]
    return subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=stderr, text=True, check=True)


def test_a_terminal_gets_a_bar_and_lines_stand_above_it():
    terminal, stderr = pty.openpty()
    termios.tcsetwinsize(stderr, (24, 100))
    code = WORK.replace("with", "import sys; sys.stdout = sys.stderr\nwith")
    work(stderr, code)
    os.close(stderr)
    shown = os.read(terminal, 10**6).decode()
    os.close(terminal)
    above, below = shown.split("a line\r\n")
    assert "training:  50%" in above and above.rstrip(" ").endswith("\r")
    last = below.split("\r\n")[0]
    assert "200/200" in last and "step/s" in last and "loss=0.31" in last


def test_a_log_file_gets_few_whole_lines():
    done = work(subprocess.PIPE)
    first, last = done.stderr.split("\n")[1:-1]
    assert "training:  50%" in first and "100/200" in first
    assert "training: 100%" in last and "loss=0.31" in last
    assert done.stdout == "a line\ndone\n"


@pytest.mark.parametrize("shell", ['"$@" 2>&-', '"$@" 2>/dev/full', '{ "$@" 2>&1 >&3 | true; } 3>&1'])
def test_a_stderr_that_is_closed_full_or_gone_does_not_end_the_work(shell):
    code = "import time; time.sleep(0.3)\n" + WORK  # until nobody reads the pipe
    command = ["sh", "-c", shell, "sh", sys.executable, "-c", code]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.stdout == "a line\ndone\n"


def test_what_is_disabled_shows_nothing():
    done = work(subprocess.PIPE, WORK.replace("initial=100", "disable=True"))
    assert done.stderr == "" and done.stdout == "a line\ndone\n"
