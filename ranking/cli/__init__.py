"""`advprior rank …`: plugged into the command line by entry point; imports a command when it runs."""

from __future__ import annotations

import importlib

import click

_COMMANDS = {
    "features": ("ranking.cli.measure:features", "History, ad and profile tables for the store, as of each snapshot."),
    "frame": ("ranking.cli.measure:frame", "The point-in-time training frame, joined by Feast."),
    "train": ("ranking.cli.measure:train", "Train and save one ranker."),
    "ablate": ("ranking.cli.measure:ablate", "Train every arm and measure its lift over the baseline."),
    "arms": ("ranking.cli.arms:arms", "Check and list an arms file."),
    "towers": ("ranking.cli.candidates:towers", "Fit a two-tower model of users and ads."),
    "candidates": ("ranking.cli.candidates:candidates", "Recall and concentration against the priors' quota."),
    "two-by-two": (
        "ranking.cli.candidates:two_by_two",
        "Candidates with and without priors x ranker with and without.",
    ),
    "origin": ("ranking.cli.rolling:origin", "The same tables at a later cut-off, for a rolling origin."),
    "pool": ("ranking.cli.rolling:pool", "One answer from the ablations, or two-by-twos, of several cut-offs."),
    "report": ("ranking.cli.report:report", "One HTML file: verdict, arms, segments, provenance."),
    "drift": ("ranking.cli.monitor:drift", "Drift of features and priors since training, as JSON and a page."),
    "audit": ("ranking.cli.monitor:audit", "Is the frame what the service read? Cell by cell."),
    "serve": ("ranking.cli.service:serve", "Serve POST /rank: a user's slate in milliseconds."),
    "check": ("ranking.cli.service:check", "Preflight of `serve`."),
    "promote": ("ranking.cli.promote:promote", "A new ranker into the place of the one that serves, if it is better."),
    "rollback": ("ranking.cli.service:rollback", "Serve the previous snapshot, or ranker, again."),
    "replay": ("ranking.cli.experiment:replay", "A past day's impressions through the running service."),
    "readout": (
        "ranking.cli.experiment:readout",
        "An online experiment's lift, its interval, its sample ratio.",
    ),
}


class LazyGroup(click.Group):
    """Knows its commands' names and summaries; imports the module only to run one."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _COMMANDS:
            return None
        module, attribute = _COMMANDS[cmd_name][0].split(":")
        command: click.Command = getattr(importlib.import_module(module), attribute)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, summary) for name, (_, summary) in _COMMANDS.items()])


@click.group(cls=LazyGroup)
def rank() -> None:
    """Measure what priors do to a ranker."""
