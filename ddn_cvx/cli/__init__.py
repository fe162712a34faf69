"""The command ``ddn-cvx``."""

from ddn_cvx.cli.cli import main

__all__ = ["main"]
