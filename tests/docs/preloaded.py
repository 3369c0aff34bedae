"""Commands of a page without their imports: one process imports what they share once, then forks for each command.

A page runs some twenty commands; each would import Feast and LightGBM anew, six CPU-seconds of eight. The commands are
the real ones, each in a process, a folder and an environment of its own, on the output of its caller. Services are
started as a user starts them, imports included: they get signals, and start workers of their own.

`preloaded` runs the server; `write_command` writes a script that stands for ``advprior`` or ``feast`` on a PATH.
"""

from __future__ import annotations

import array
import importlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

#: What most commands import; what only one needs (torch) stays with it.
MODULES = (
    "feast.cli.cli",
    "feast.infra.offline_stores.duckdb",
    "feast.infra.online_stores.sqlite",
    "lightgbm",
    "pyarrow.dataset",
    "ranking.frame.build",
    "ranking.service.check",
)
_COMMANDS = {"advprior": ("advprior.cli", "main"), "feast": ("feast.cli.cli", "cli")}


@contextmanager
def preloaded(folder: Path) -> Iterator[Path]:
    """A running server; its socket, for `write_command`.

    Parameters
    ----------
    folder : Path
        Where the socket lies; short, since a socket's path may have some hundred characters.
    """
    path = folder / "commands"
    server = subprocess.Popen([sys.executable, "-W", "ignore", __file__, str(path)], start_new_session=True)
    try:
        while not path.exists():
            if server.poll() is not None:
                raise RuntimeError(f"the server of commands ended with {server.returncode}")
            time.sleep(0.05)
        yield path
    finally:
        os.killpg(server.pid, signal.SIGKILL)  # with whatever a command has left behind
        server.wait()


def write_command(script: Path, name: str, path: Path) -> None:
    """Write an executable that runs the command `name` in a fork of the server at `path`."""
    script.write_text(
        f"""#!/bin/sh
case "$*" in "rank serve "*) exec {sys.executable} -W ignore -m {name} "$@" ;; esac
exec {sys.executable} -I -S {__file__} {path} {name} "$@"
"""
    )
    script.chmod(0o755)


def _request(path: str, name: str, arguments: list[str]) -> int:
    """Ask the server for a command, and wait for its exit code."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(path)
        body = json.dumps({"name": name, "arguments": arguments, "folder": os.getcwd(), "environment": {**os.environ}})
        socket.send_fds(connection, [len(body).to_bytes(4, "big")], [0, 1, 2])
        connection.sendall(body.encode())
        code = connection.makefile("r").readline()
    return int(code) if code else 128 + signal.SIGKILL


def _serve(path: str) -> None:
    """Import, then fork for each connection; children are reaped by the system."""
    before = set(os.environ)
    for module in MODULES:
        importlib.import_module(module)
    added = {name: value for name, value in os.environ.items() if name not in before}
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path + ".new")
        listener.listen(16)
        os.rename(path + ".new", path)
        while True:
            connection, _ = listener.accept()
            if os.fork() == 0:
                listener.close()
                _run(connection, added)
            connection.close()


def _run(connection: socket.socket, added: dict[str, str]) -> None:
    """One command, in a fork that never returns; `added` is what the imports put into the environment."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    length, ancillary, *_ = connection.recvmsg(4, socket.CMSG_LEN(3 * array.array("i").itemsize))
    descriptors = array.array("i", ancillary[0][2])
    remaining, parts = int.from_bytes(length, "big"), []
    while remaining:
        parts.append(connection.recv(remaining))
        remaining -= len(parts[-1])
    request = json.loads(b"".join(parts))
    for target, descriptor in enumerate(descriptors):
        os.dup2(descriptor, target)
        os.close(descriptor)
    os.chdir(request["folder"])
    os.environ.clear()
    os.environ.update(added | request["environment"])
    sys.argv = [request["name"], *request["arguments"]]
    sys.path[0] = ""
    code = _exit_code(request["name"])
    sys.stdout.flush()
    sys.stderr.flush()
    connection.sendall(f"{code}\n".encode())
    os._exit(code)


def _exit_code(name: str) -> int:
    """Run the command's function as its console script does."""
    module, function = _COMMANDS[name]
    try:
        getattr(importlib.import_module(module), function)()
    except SystemExit as ended:
        if ended.code is None or isinstance(ended.code, int):
            return ended.code or 0
        print(ended.code, file=sys.stderr)
        return 1
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


if __name__ == "__main__":
    if len(sys.argv) > 2:
        sys.exit(_request(sys.argv[1], sys.argv[2], sys.argv[3:]))
    _serve(sys.argv[1])
