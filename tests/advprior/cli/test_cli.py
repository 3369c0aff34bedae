"""The command line itself: quick, honest about errors, and what the README says."""

from __future__ import annotations

import os
import re
import resource
import subprocess
import sys
import tomllib
from pathlib import Path

import click
import pytest

import advprior
from advprior.cli import cli, main

ROOT = Path(__file__).parents[3]
ADVPRIOR = [sys.executable, "-m", "advprior"]
HEAVY = {
    "torch",
    "transformers",
    "optimum",
    "onnxruntime",
    "feast",
    "pandas",
    "numpy",
    "pyarrow",
    "lightgbm",
    "duckdb",
    "pyspark",
}
README = (ROOT / "README.md").read_text()
PROJECT_README = (ROOT / "advprior" / "templates" / "README.md").read_text()


def run(*arguments: str, **options) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*ADVPRIOR, *arguments], capture_output=True, text=True, check=False, **options)


def all_commands(group: click.Group = cli, prefix: str = "") -> list[str]:
    """Every command, groups opened: ``data build complete_journey``, ``rank train``, …"""
    context = click.Context(group)
    names = []
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        names.append(prefix + name)
        if isinstance(command, click.Group):
            names += all_commands(command, f"{prefix}{name} ")
    return names


def cpu_seconds(*command: str) -> float:
    """Processor time of a command, the least of a few: what else the machine does counts for nothing."""
    least = 60.0
    for _ in range(5):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run(command, capture_output=True, check=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        least = min(least, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    return least


def test_help_is_cheap():
    """Against Python's own start, so that a slow machine is not a slow command."""
    start = cpu_seconds(sys.executable, "-c", "import click, importlib.metadata")
    assert cpu_seconds(*ADVPRIOR, "--help") < 2 * start + 0.1


@pytest.mark.parametrize("line", ["--help", "--version", "run --help", "status --help", "init --help", "rank --help"])
def test_nothing_heavy_is_imported(line):
    probe = (
        "import sys\nfrom advprior.cli import main\n"
        "try: main(sys.argv[1:])\nexcept SystemExit: pass\n"
        "print('LOADED', *{name.split('.')[0] for name in sys.modules})"
    )
    done = subprocess.run([sys.executable, "-c", probe, *line.split()], capture_output=True, text=True, check=True)
    loaded = set(done.stdout.rsplit("LOADED", 1)[1].split())
    assert loaded & HEAVY == set()


def test_python_dash_m_is_the_command():
    assert run("--version").stdout.strip() == f"advprior, version {advprior.__version__}"
    assert advprior.__version__ == tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]


def test_every_command_has_help(capsys):
    for name in all_commands():
        with pytest.raises(SystemExit) as leave:
            main([*name.split(), "--help"])
        assert leave.value.code == 0, name
        assert capsys.readouterr().out.startswith(f"Usage: advprior {name} [OPTIONS]"), name


@pytest.mark.parametrize(("error", "code"), [(EOFError("no data left in file"), 1), (KeyboardInterrupt(), 130)])
def test_a_file_that_ends_too_soon_is_no_interrupt(error, code, monkeypatch, capsys):
    """click takes both for one: the end of the terminal's input."""

    @click.command()
    def reading():
        raise error

    monkeypatch.setattr(type(cli), "get_command", lambda group, ctx, name: reading)
    with pytest.raises(SystemExit) as leave:
        main(["reading"])
    assert leave.value.code == code
    assert ("unexpected EOFError: no data left in file" in capsys.readouterr().err) is (code == 1)


@pytest.mark.parametrize("text", [README, PROJECT_README], ids=["README", "project README"])
def test_readme_commands_exist_with_their_options(text):
    """Each `advprior …` line of a code block names a command, and only options that it has."""
    blocks = re.findall(r"```(?:bash|console|sh)\n(.*?)```", text, flags=re.DOTALL)
    lines = [line for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    found = [line.split("#")[0].split() for line in lines if re.match(r"\s*(?:\$ )?advprior ", line)]
    assert found
    for words in found:
        words = words[words.index("advprior") + 1 :]
        command, context = cli, click.Context(cli)
        while isinstance(command, click.Group) and words and not words[0].startswith("-"):
            command = command.get_command(context, words.pop(0))
            assert command is not None, f"no such command: {words}"
        known = {option for parameter in command.params for option in parameter.opts + parameter.secondary_opts}
        used = {word.split("=")[0] for word in words if word.startswith("--")}
        assert used <= known | {"--help", "--debug", "--version"}, words


def test_readme_make_targets_exist():
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
    named = set(re.findall(r"\bmake ([a-z]+)\b", "\n".join(re.findall(r"```bash\n(.*?)```", README, flags=re.DOTALL))))
    assert named
    assert named <= targets


def test_unknown_command_says_so():
    done = run("no-such-thing")
    assert done.returncode == 2
    assert "No such command 'no-such-thing'" in done.stderr
    assert "Traceback" not in done.stderr


def test_bad_input_is_one_coded_error_and_debug_adds_the_traceback(tmp_path):
    (tmp_path / "file").write_text("")
    plain = run("init", str(tmp_path / "file"))
    assert plain.returncode == 2
    assert plain.stderr.startswith("error CFG010: ")
    assert "Traceback" not in plain.stderr
    debug = run("init", str(tmp_path / "file"), "--debug")
    assert debug.returncode != 0
    assert "Traceback" in debug.stderr
    assert "CFG010" in debug.stderr


@pytest.fixture
def own_names(tmp_path):
    """A user's folder with packages of their own that bear the names of ours."""
    for name in ("ranking", "feature_repo"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("raise ImportError('the user's own')")
    return tmp_path


@pytest.mark.parametrize("line", ["--version", "rank --help", "rank report --help", "publish --help"])
def test_commands_work_beside_folders_that_bear_the_names_of_our_packages(own_names, line):
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = run(*line.split(), cwd=own_names, env=environment)
    assert done.returncode == 0, done.stderr


def test_a_notebook_beside_a_plain_folder_named_ranking_imports_ours(tmp_path):
    (tmp_path / "ranking").mkdir()
    (tmp_path / "ranking" / "notes.txt").write_text("not a package")
    command = [sys.executable, "-c", "import ranking; print(ranking.__file__)"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True)
    assert Path(done.stdout.strip()) == ROOT / "ranking" / "__init__.py"


@pytest.mark.parametrize("command", ["run", "status"])
def test_without_a_project_file_run_and_status_say_what_to_run(tmp_path, command):
    done = run(command, str(tmp_path))
    assert done.returncode == 2
    assert done.stderr.startswith("error CFG013")
    assert f"advprior init {tmp_path}" in done.stderr
