"""The option of every command that fits: where it computes."""

from __future__ import annotations

import click

device_option = click.option(
    "--device",
    metavar="auto|cpu|cuda|cuda:N",
    help="Where fits compute. Default: `device` of the project, else auto: CUDA where torch has it, else the CPU.",
)
