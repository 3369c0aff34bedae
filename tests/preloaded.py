"""Commands without their imports: one process imports what they share once, then forks for each command.

A page of the docs runs some twenty commands and a project some thirty; each would import Feast, LightGBM or torch anew,
most of its processor time. The commands are the real ones, each in a process, a folder and an environment of its own,
on the output of its caller. Services are started as a user starts them, imports included: they get signals, and start
workers of their own.

`preloaded` runs the server; `write_command` writes a script that stands for ``advprior`` or ``feast`` on a PATH,
`write_python` one that stands for the interpreter which `advprior run` starts its steps with.
"""

from __future__ import annotations

import array
import gc
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

#: What most commands import.
MODULES = (
    "feast.cli.cli",
    "feast.infra.offline_stores.duckdb",
    "feast.infra.online_stores.sqlite",
    "lightgbm",
    "pyarrow.dataset",
    "ranking.frame.build",
    "ranking.service.check",
)
#: What fitting and exporting an LLM, encoding texts and fitting towers import besides.
TRAINING = (
    "ranking.evidence.plots",
    "torch._dynamo",
    "torch.onnx",
    "transformers.models.auto.modeling_auto",
    "advprior.predictors.llm.tuning.train",
)
#: The environment variable that says what a command is to take for its interpreter.
PYTHON = "PRELOADED_PYTHON"
_COMMANDS = {"advprior": ("advprior.cli", "main"), "feast": ("feast.cli.cli", "cli")}


@contextmanager
def preloaded(
    folder: Path, modules: tuple[str, ...] = MODULES, options: tuple[str, ...] = ("-W", "ignore")
) -> Iterator[Path]:
    """A running server; its socket, for `write_command` and `write_python`.

    Parameters
    ----------
    folder : Path
        Where the socket lies; short, since a socket's path may have some hundred characters.
    modules : tuple of str
        What it imports.
    options : tuple of str
        Of its interpreter, and so of every command's.
    """
    path = folder / "commands"
    words = [sys.executable, *options, __file__, "serve", str(path), *modules]
    server = subprocess.Popen(words, start_new_session=True)
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
exec {sys.executable} -I -S {__file__} ask {path} {name} "$@"
"""
    )
    script.chmod(0o755)


def write_python(script: Path, path: Path) -> None:
    """Write an executable in place of the interpreter: it runs steps of a project in forks of the server at `path`.

    Whatever else is the interpreter's own; so is ``feast materialize``, one step with imports of its own, in a folder
    whose packages it may not take for ours.
    """
    python = sys.executable
    script.write_text(
        f"""#!/bin/sh
case "$*" in
  *" materialize "*) exec {python} "$@" ;;
  "-P -m advprior "*) name=advprior ;;
  "-P -m advprior.store.feast_import "*) name=feast ;;
  *) exec {python} "$@" ;;
esac
shift 3
exec {python} -I -S {__file__} ask {path} -P $name "$@"
"""
    )
    script.chmod(0o755)


def _request(path: str, *words: str) -> int:
    """Ask the server for a command, and wait for its exit code; after ``-P`` its folder is not searched for modules."""
    safe, (name, *arguments) = words[0] == "-P", words[words[0] == "-P" :]
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(path)
        request = {"name": name, "arguments": arguments, "safe": safe, "folder": os.getcwd()}
        body = json.dumps({**request, "environment": {**os.environ}})
        socket.send_fds(connection, [len(body).to_bytes(4, "big")], [0, 1, 2])
        connection.sendall(body.encode())
        code = connection.makefile("r").readline()
    return int(code) if code else 128 + signal.SIGKILL


def _serve(path: str, modules: list[str]) -> None:
    """Import, then fork for each connection."""
    before = set(os.environ)
    sys.path[0] = ""
    from advprior.store.feast_import import light_feast_import

    with light_feast_import():
        for module in modules:
            if module.startswith("feast."):
                importlib.import_module(module)
    for module in modules:
        importlib.import_module(module)
    added = {name: value for name, value in os.environ.items() if name not in before}
    gc.freeze()  # what is shared stays shared
    signal.signal(signal.SIGCHLD, _reap)
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


def _reap(*_: object) -> None:
    """Take the children that have ended, so that their processor time counts as this process's."""
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        return


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
    if request["safe"]:
        del sys.path[0]
    sys.executable = os.environ.get(PYTHON, sys.executable)
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
    if sys.argv[1] == "ask":
        sys.exit(_request(*sys.argv[2:]))
    _serve(sys.argv[2], sys.argv[3:])
