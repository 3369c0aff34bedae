"""The `advprior` command: lazy groups, coded errors, one place for exit codes.

Modules behind a command are imported when the command runs, so ``advprior --help`` stays fast.
Other packages add groups through the entry point group ``advprior.commands`` (``ranking`` does).
"""

from __future__ import annotations

import errno
import importlib
import os
import sys
from importlib.metadata import entry_points
from typing import Any, NoReturn

import click

from advprior import __version__
from advprior.store.errors import AdvpriorError

#: name -> (module:attribute, one-line help shown by ``advprior --help`` without importing the module)
_COMMANDS = {
    "init": ("advprior.cli.init:init", "Make a project: your own tables, or an example's."),
    "run": ("advprior.cli.run:run", "The whole chain of a project, from tables to verdict; only what is stale."),
    "status": ("advprior.cli.run:status", "What of a project is current, stale or missing, and what it cost."),
    "refresh": ("advprior.cli.refresh:refresh", "The daily refresh: tables, new priors, store; then a preflight."),
    "data": ("advprior.cli.data:data", "Build canonical tables, or check your own."),
    "finetune": ("advprior.cli.finetune:finetune", "Fit a predictor on the histories."),
    "export": ("advprior.cli.export:export", "Export a fitted predictor to ONNX, with a parity report."),
    "score": ("advprior.cli.score:score", "Write priors for every user and snapshot."),
    "publish": ("advprior.cli.publish:publish", "Put priors into the feature repository, atomically."),
    "evaluate": ("advprior.cli.evaluate:evaluate", "Who names the next advertiser best: the ladder of predictors."),
    "compare": ("advprior.cli.compare:compare", "Which scored priors say best what users turn to, at every snapshot?"),
    "card": ("advprior.cli.card:card", "Write the model card of a fitted predictor."),
    "cold": ("advprior.cli.cold:cold", "Who ranks advertisers best that nobody has turned to yet?"),
    "catalog": ("advprior.cli.catalog:catalog", "Show, compare and extend the list of advertisers."),
}
_PLUGIN_HELP = {"rank": "Frames, rankers, ablations and reports (package `ranking`)."}


class LazyGroup(click.Group):
    """A group that knows its commands' names and summaries and imports one only to run it."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return [*_COMMANDS, *sorted(_plugins())]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name in _COMMANDS:
            module, attribute = _COMMANDS[cmd_name][0].split(":")
            command: click.Command = getattr(importlib.import_module(module), attribute)
            return command
        plugin = _plugins().get(cmd_name)
        return None if plugin is None else plugin.load()

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        rows = [(name, summary) for name, (_, summary) in _COMMANDS.items()]
        rows += [(name, _PLUGIN_HELP.get(name, "")) for name in sorted(_plugins())]
        with formatter.section("Commands"):
            formatter.write_dl(rows)


def _plugins() -> dict[str, Any]:
    return {point.name: point for point in entry_points(group="advprior.commands")}


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="advprior")
@click.option("--debug", is_flag=True, help="Show tracebacks.")
def cli(debug: bool) -> None:
    """Advertiser priors from a small LLM: measure them on your own ranker, then serve them.

    Start with `advprior init DIR --example complete_journey`, then `advprior run DIR`; for your own tables
    `advprior init DIR`, `advprior data check` and `advprior run` there.
    """


#: A folder that may not be written to, a read-only or full disk: nothing of ours to look into.
_REFUSED_BY_THE_SYSTEM = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT)


def _refused_by_the_system(error: OSError) -> AdvpriorError:
    full = error.errno in (errno.ENOSPC, errno.EDQUOT)
    return AdvpriorError(
        "RUN013",
        "the system refuses to read or write a file",
        where=str(error.filename) if error.filename else None,
        actual=error.strerror,
        expected="room on the disk" if full else "a folder that you may read and write",
        fix="make room, then run the same command again" if full else "change its permissions, or use another folder",
    )


def _exit_unexpected(error: Exception, debug: bool) -> NoReturn:
    """Say what went wrong, in a line, and exit; with ``debug`` its traceback."""
    if debug:
        raise error
    if isinstance(error, OSError) and error.errno in _REFUSED_BY_THE_SYSTEM:
        click.echo(f"error {_refused_by_the_system(error)}", err=True)
        sys.exit(AdvpriorError.exit_code)
    click.echo(f"error: unexpected {type(error).__name__}: {error}", err=True)
    click.echo("  run again with --debug for the traceback", err=True)
    sys.exit(1)


def main(argv: list[str] | None = None) -> None:
    """Run the command line and exit: 0 done, 1 unexpected, 2 bad input, 130 interrupted."""
    arguments = sys.argv[1:] if argv is None else argv
    debug = "--debug" in arguments or os.environ.get("ADVPRIOR_DEBUG") == "1"
    # --debug is welcome anywhere on the line, not only before the command
    arguments = [a for a in arguments if a != "--debug"]
    try:
        # without standalone mode click hands an exit code back in place of exiting
        code = cli.main(args=arguments, prog_name="advprior", standalone_mode=False)
    except click.exceptions.Exit as leave:
        sys.exit(leave.exit_code)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except (click.Abort, KeyboardInterrupt) as stop:
        if isinstance(stop.__cause__, EOFError):  # of a file that ends too soon; click takes it for Ctrl-D
            _exit_unexpected(stop.__cause__, debug)
        click.echo("interrupted: finished parts are kept, run the same command again to go on", err=True)
        sys.exit(130)
    except AdvpriorError as error:
        if debug:
            raise
        click.echo(f"error {error}", err=True)
        sys.exit(error.exit_code)
    except Exception as error:
        _exit_unexpected(error, debug)
    sys.exit(code if isinstance(code, int) else 0)
