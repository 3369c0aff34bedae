"""Commands without their imports: one process imports what they share once, then forks for each command.

A page of the docs runs some twenty commands and a project some thirty; each would import Feast, LightGBM or torch anew,
most of its processor time. The commands are the real ones, each in a process, a folder and an environment of its own,
on the output of its caller. Services are started as a user starts them, imports included: they get signals, and start
workers of their own.

`preloaded` runs the server; `write_command` writes a script that stands for ``advprior`` or ``feast`` on a PATH,
`write_python` one that stands for the interpreter which `advprior run` starts its steps with.

The processes of a test run are such forks, too (`fork_workers`): of four processes three would import the libraries
anew, ten CPU-seconds each. What is ours they import themselves, with warnings as errors. Servers that tests start are
forks of the same process.
"""

from __future__ import annotations

import array
import atexit
import contextlib
import gc
import importlib
import json
import os
import runpy
import select
import shlex
import signal
import socket
import subprocess
import sys
import time
import traceback
import types
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

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
#: Libraries that most processes of a test run import: nothing of ours, and of others only what is installed.
LIBRARIES = (
    "prometheus_client",
    "feast.cli.cli",
    "feast.infra.offline_stores.duckdb",
    "feast.infra.online_stores.sqlite",
    "feast.infra.online_stores.redis",
    "lightgbm",
    "pyarrow.dataset",
    "pandera.pandas",
    "fastapi",
    "uvicorn",
    "matplotlib.backends.backend_svg",
    "scipy.optimize",
    "sklearn.ensemble",
    "sklearn.feature_extraction.text",
    "torch._dynamo",
    "torch.onnx",
    "transformers.models.auto.modeling_auto",
    "transformers.models.llama.modeling_llama",
    "optimum.exporters.onnx",
    "optimum.exporters.onnx.model_patcher",
    "peft",
    "onnx",
    "onnxruntime",
    "implicit",
    "lleaves",
)
#: The environment variable that says what a command is to take for its interpreter.
PYTHON = "PRELOADED_PYTHON"
#: The environment variable with the socket of the process that a whole test run is forked from.
_LIBRARIES_SOCKET = "PRELOADED_LIBRARIES"
_COMMANDS = {"advprior": ("advprior.cli", "main"), "feast": ("feast.cli.cli", "cli")}


@contextmanager
def preloaded(folder: Path, modules: tuple[str, ...] = MODULES, *, quiet: bool = True) -> Iterator[Path]:
    """A running server; its socket, for `write_command` and `write_python`.

    Parameters
    ----------
    folder : Path
        Where the socket lies; short, since a socket's path may have some hundred characters.
    modules : tuple of str
        What it imports.
    quiet : bool
        Whether its commands leave warnings out.
    """
    path = folder / "commands"
    arguments = ["serve", str(path), "ignore" if quiet else "default", *modules]
    if _LIBRARIES_SOCKET in os.environ:
        words = [sys.executable, "-I", "-S", __file__, "ask", os.environ[_LIBRARIES_SOCKET], *arguments]
    else:
        words = [sys.executable, __file__, *arguments]
    server = subprocess.Popen(words, start_new_session=True)
    try:
        while not path.exists():
            if server.poll() is not None:
                raise RuntimeError(f"the server of commands ended with {server.returncode}")
            time.sleep(0.05)
        yield path
    finally:
        group = int(_identifier(path).read_text()) if path.exists() else server.pid
        with contextlib.suppress(ProcessLookupError, subprocess.TimeoutExpired):
            os.kill(group, signal.SIGTERM)
            server.wait(60)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(group, signal.SIGKILL)  # with whatever a command has left behind
        server.wait()


def fork_workers(folder: Path, specs: Sequence[Any]) -> contextlib.ExitStack:
    """Let the processes of pytest-xdist be forks of one that has imported `LIBRARIES`; ends with what is returned.

    Parameters
    ----------
    folder : Path
        Where the socket lies.
    specs : sequence of execnet.XSpec
        Of the processes: each gets another interpreter.
    """
    stack = contextlib.ExitStack()
    path = stack.enter_context(preloaded(folder, LIBRARIES, quiet=False))
    os.environ[_LIBRARIES_SOCKET] = str(path)
    stack.callback(os.environ.pop, _LIBRARIES_SOCKET)
    for spec in specs:
        spec.python = shlex.join(interpreter())
    return stack


def interpreter() -> list[str]:
    """The words before ``-c CODE`` or ``-m MODULE``: an interpreter that has `LIBRARIES` where this test run has one.

    For what neither is killed nor looks at what is imported.
    """
    if _LIBRARIES_SOCKET not in os.environ:
        return [sys.executable]
    return [sys.executable, "-I", "-S", __file__, "ask", os.environ[_LIBRARIES_SOCKET], "python"]


def _identifier(path: Path) -> Path:
    """The file with the number of the server at `path`, and of its group."""
    return path.with_name(f"{path.name}.group")


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


def _serve(path: str, warning: str, *modules: str) -> None:
    """Import, then fork for each connection; ends when its parent has ended."""
    before = set(os.environ)
    sys.path[0] = ""
    if warning == "ignore":  # as with -W ignore
        sys.warnoptions.append(warning)
        warnings.simplefilter("ignore")
    from advprior.store.feast_import import light_feast_import

    with light_feast_import():
        for module in modules:
            if module.startswith("feast."):
                _import(module)
    for module in modules:
        _import(module)
    added = {name: value for name, value in os.environ.items() if name not in before}
    gc.freeze()  # what is shared stays shared
    signal.signal(signal.SIGCHLD, _reap)
    signal.signal(signal.SIGTERM, _end)
    parent = os.getppid()
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path + ".new")
        listener.listen(16)
        _identifier(Path(path)).write_text(str(os.getpid()))
        os.rename(path + ".new", path)
        while os.getppid() == parent:
            if not select.select([listener], [], [], 5)[0]:
                continue
            connection, _ = listener.accept()
            if os.fork() == 0:
                listener.close()
                _run(connection, added)
            connection.close()


def _import(module: str) -> None:
    with contextlib.suppress(ImportError) if module in LIBRARIES else contextlib.nullcontext():
        importlib.import_module(module)


def _reap(*_: object) -> None:
    """Take the children that have ended, so that their processor time counts as this process's."""
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        return


def _end(*_: object) -> None:
    """End when the last child has: whoever is not waited for is counted nowhere."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    with contextlib.suppress(ChildProcessError):
        while True:
            os.wait()
    os._exit(0)


def _run(connection: socket.socket, added: dict[str, str]) -> None:
    """One command, in a fork that never returns; `added` is what the imports put into the environment."""
    for number in (signal.SIGCHLD, signal.SIGTERM):
        signal.signal(number, signal.SIG_DFL)
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


def _python(option: str, target: str, *arguments: str) -> None:
    """Run as ``python -c CODE`` or ``python -m MODULE`` does."""
    main = sys.modules["__main__"] = types.ModuleType("__main__")
    sys.argv = [option, *arguments]
    try:
        if option == "-c":
            exec(target, main.__dict__)
        else:
            runpy.run_module(target, run_name="__main__", alter_sys=True)
    finally:
        atexit._run_exitfuncs()


def _exit_code(name: str) -> int:
    """Run the command's function as its console script does."""
    try:
        if name == "python":
            _python(*(word for word in sys.argv[1:] if word != "-u"))
        elif name == "serve":
            os.setsid()
            _serve(*sys.argv[1:])
        else:
            module, function = _COMMANDS[name]
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
    _serve(*sys.argv[2:])
