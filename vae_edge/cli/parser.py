"""The whole command line with its help; imports next to nothing, so that `--help` answers in a blink."""

from __future__ import annotations

import argparse

from vae_edge import __version__
from vae_edge.cli.arguments import Parser
from vae_edge.cli.commands import GROUPS, SUMMARIES
from vae_edge.cli.deploy_parser import add_deploy_commands
from vae_edge.cli.device_parser import add_device_commands
from vae_edge.cli.evaluate_parser import add_evaluate_commands
from vae_edge.cli.kernels_parser import add_kernel_commands
from vae_edge.cli.train_parser import add_train_commands


def build_parser() -> argparse.ArgumentParser:
    """The whole command line."""
    lines = []
    for group, names in GROUPS.items():
        lines += [f"{group}:", *(f"  {name:<11} {SUMMARIES[name]}" for name in names), ""]
    parser = Parser(
        prog="vae-edge",
        usage="vae-edge [--version] COMMAND ...",
        description="From labelled images to a classifier for the edge that tells the orientation, and says when it\n"
        "does not know. Each command reads files and writes files; a bundle is what travels to the device.\n\n"
        + "\n".join(lines),
        epilog="`vae-edge COMMAND --help` has the options and an example.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"vae-edge {__version__}")
    commands = parser.add_subparsers(prog="vae-edge", metavar="COMMAND", required=True, help=argparse.SUPPRESS)
    add_train_commands(commands)
    add_evaluate_commands(commands)
    add_deploy_commands(commands)
    add_kernel_commands(commands)
    add_device_commands(commands)
    return parser
