"""A program may end while a daemon thread is inside a call."""

from __future__ import annotations

import subprocess
import sys

PROGRAM = """
import threading, time
import numpy as np
import fusedrnn as fr

layer, x = fr.LSTM(64, 64, seed=0), np.zeros((200, 4, 64), np.float32)
begun = threading.Event()

def work():
    while True:
        begun.set()
        layer(x)

for _ in range(3):
    threading.Thread(target=work, daemon=True).start()
begun.wait()
time.sleep(0.1)
"""


def test_a_daemon_threads_call_does_not_abort_the_process() -> None:
    for _ in range(3):
        done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=False)
        assert (done.returncode, done.stderr) == (0, "")
