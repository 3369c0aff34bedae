"""The option of every command that fits or asks networks: where it computes."""

from __future__ import annotations

import click

device_option = click.option(
    "--device",
    metavar="auto|cpu|cuda|cuda:N",
    help="Where networks compute. Default: `device` of the project, else auto: CUDA where it can be had, else the CPU.",
)
