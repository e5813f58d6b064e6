"""Python in processes of their own that know PyTorch and nothing else, forked from one that waits: saves seconds."""

from __future__ import annotations

import atexit
import json
import os
import socket
import subprocess
import sys
import tempfile
from functools import cache
from pathlib import Path

# Every request is words, folder and environment, and comes with the two files to print to. The child leaves the loop,
# and ends as any Python does that was started with -c.
SERVER = """
import json, os, socket, sys
import torch

asked = socket.socket(fileno=int(sys.argv[1]))
while True:
    request, files, _, _ = socket.recv_fds(asked, 1 << 20, 2)
    if not request:
        os._exit(0)
    child = os.fork()
    if child == 0:
        break
    for file in files:
        os.close(file)
    asked.send(str(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])).encode())

asked.close()
source, words, folder, environment = json.loads(request)
for file, known in zip(files, (1, 2)):
    os.dup2(file, known)
    os.close(file)
sys.stdout, sys.stderr = sys.__stdout__, sys.__stderr__ = open(1, "w"), open(2, "w", buffering=1)
os.chdir(folder)
os.environ.clear()
os.environ.update(environment)
sys.argv = ["-c", *words]
for name in ("asked", "files", "file", "known", "request", "child", "folder", "environment", "words"):
    del globals()[name]
exec(compile(source, "<string>", "exec"), globals())
"""


@cache
def _server() -> socket.socket:
    """The end to ask at; the process goes with this one."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    words = [sys.executable, "-c", SERVER, str(theirs.fileno())]
    waiting = subprocess.Popen(
        words, pass_fds=[theirs.fileno()], env=environment(), stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL
    )
    theirs.close()
    atexit.register(waiting.wait)
    atexit.register(ours.close)
    return ours


def environment() -> dict[str, str]:
    """This process's, without what lanes and pytest put there, and on one thread."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("TRITON", "PYTEST"))}
    return {**kept, "OMP_NUM_THREADS": "1"}


def python(
    source: str,
    *words: str,
    cwd: Path | None = None,
    stdout: int | None = None,
    status: int = 0,
    **variables: str,
) -> subprocess.CompletedProcess[str]:
    """What ``python -c source words`` comes to, with torch imported before it.

    Args:
        source: the program.
        words: sys.argv behind its first.
        cwd: the folder to run in; without it this process's.
        stdout: a descriptor to print to; without it what is printed comes back.
        status: the exit status to demand; negative for a signal.
        variables: put into its environment.
    """
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as errors:
        request = json.dumps([source, words, str(cwd or Path.cwd()), {**environment(), **variables}])
        files = [out.fileno() if stdout is None else stdout, errors.fileno()]
        socket.send_fds(_server(), [request.encode()], files)
        found = int(_server().recv(16))
        out.seek(0)
        errors.seek(0)
        done = subprocess.CompletedProcess(source, found, out.read(), errors.read())
    assert done.returncode == status, done.stdout[-3000:] + done.stderr[-3000:]
    return done


def module(name: str, *words: str, **how: object) -> subprocess.CompletedProcess[str]:
    """What ``python -m name words`` comes to: as :func:`python`."""
    return python(f"import runpy; runpy.run_module({name!r}, run_name='__main__', alter_sys=True)", *words, **how)
