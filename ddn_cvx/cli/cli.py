"""The command ``ddn-cvx``: list the catalogue, show an entry, compare solvers and adjoints."""

from __future__ import annotations

import argparse
import difflib
import json
import runpy
import sys
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console

    from ddn_cvx.comparison import Comparison
    from ddn_cvx.declaration import Declaration


class UsageError(Exception):
    """A mistake in the arguments; the message says how to put it right."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code: 0, or 2 for a mistake in the arguments."""
    from ddn_cvx.errors import DeclarationError

    options = _parser().parse_args(arguments)
    try:
        options.run(options)
    except (UsageError, DeclarationError) as error:
        sys.stderr.write(f"ddn-cvx: {error}\n")
        return 2
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # the reader, such as `head`, has gone
        sys.stderr.close()
        return 141
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="ddn-cvx", description="Optimization problems as layers: look at them, compare them."
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    listing = commands.add_parser("list", help="the catalogue's problems")
    listing.set_defaults(run=_list)

    show = commands.add_parser("show", help="one problem, and the layer that it becomes")
    show.add_argument("name", metavar="NAME", help=_NAME)
    show.set_defaults(run=_show)

    compare = commands.add_parser(
        "compare",
        help="solvers x adjoints on the same batch; without a name, a tour of four problems",
        description="Every installed solver with every adjoint on the same batch: errors, failures,"
        " time and memory. Without a name, a tour in under two minutes, with real data.",
    )
    compare.add_argument("names", metavar="NAME", nargs="*", help=_NAME)
    compare.add_argument(
        "--solver", action="append", metavar="S", help="only this one (repeatable)"
    )
    compare.add_argument(
        "--adjoint", action="append", metavar="A", help="only this one (repeatable)"
    )
    compare.add_argument("--batch", type=_positive, metavar="N", help="number of elements")
    compare.add_argument("--seed", type=int, default=0, metavar="N", help="of the example inputs")
    compare.add_argument("--device", default="cpu", help="where the tensors live: cpu, cuda")
    compare.add_argument("--plot", type=Path, metavar="FILE", help="draw a figure (png, svg, pdf)")
    compare.add_argument("--json", type=Path, metavar="FILE", help="save everything")
    compare.add_argument("--csv", type=Path, metavar="FILE", help="save the figures")
    compare.add_argument("--markdown", type=Path, metavar="FILE", help="save the tables")
    compare.set_defaults(run=_compare)
    return parser


_NAME = "a name from `ddn-cvx list`, or path/to/file.py:name for a declaration of your own"


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1; got {number}")
    return number


# -- list and show --------------------------------------------------------------------------------


def _list(options: argparse.Namespace) -> None:
    from rich import box
    from rich.table import Table

    from ddn_cvx.problems import catalogue

    table = Table(box=box.SIMPLE_HEAD, show_edge=False, padding=(0, 2, 0, 0))
    table.add_column("name", style="bold", no_wrap=True)
    table.add_column("problem")
    for name, constructor in catalogue().items():
        # The docstring's first line, not the declaration's summary: to build one needs cvxpy.
        first = (constructor.__doc__ or "").strip().splitlines()[0]
        table.add_row(name, first.replace("``", ""))
    _console().print(table)


def _show(options: argparse.Namespace) -> None:
    from rich.text import Text

    console = _console()
    for number, part in enumerate(_described(locate(options.name))):
        console.print(Text(part, style="bold" if number == 0 else ""), soft_wrap=True)


def _described(declaration: Declaration) -> list[str]:
    """The declaration as text, in paragraphs."""
    from ddn_cvx.layer import DeclarativeLayer

    def leaves(title: str, found: Sequence[Any]) -> str:
        lines = []
        for leaf in found:
            kinds = [name for name, value in leaf.attributes.items() if value is True]
            shape = "x".join(map(str, leaf.shape)) or "scalar"
            lines.append(f"  {leaf.name()}  {shape}{'  ' + ', '.join(kinds) if kinds else ''}")
        return "\n".join([title, *(lines or ["  none"])])

    title = declaration.name or "problem"
    known = "a closed form" if declaration.closed_form else "no closed form"
    return [
        f"{title}: {declaration.summary}" if declaration.summary else title,
        f"\n{declaration.problem}\n",
        leaves("parameters", declaration.parameters),
        leaves("variables", declaration.variables),
        *([f"\n{declaration.citation}"] if declaration.citation else []),
        f"\nThe declaration carries {known}. The layer:\n\n{DeclarativeLayer(declaration)!r}",
    ]


# -- compare --------------------------------------------------------------------------------------


def _compare(options: argparse.Namespace) -> None:
    _check_device(options.device)
    for path in (options.plot, options.json, options.csv, options.markdown):
        if path is not None and not path.parent.is_dir():
            raise UsageError(f"there is no directory {path.parent} to write {path.name} to.")
    from ddn_cvx.comparison import compare
    from ddn_cvx.comparison.figure import save

    console = _console()
    run = partial(
        compare,
        solvers=options.solver,
        adjoints=options.adjoint,
        seed=options.seed,
        device=options.device,
        progress=True,
    )
    size = {} if options.batch is None else {"batch": options.batch}
    if options.names:
        comparisons = []
        for declaration in [locate(name) for name in options.names]:
            comparisons.append(run(declaration, **size))
            console.print(comparisons[-1])
            console.print()
        if options.plot is not None:
            save(comparisons, options.plot)
    else:
        from ddn_cvx.cli.tour import run_tour

        tour = run_tour(run, **size, show=console.print)
        path = options.plot or Path("ddn-cvx-tour.png")
        tour.plot(path)
        console.print(tour)
        console.print(f"\nThe figure is in {path}. The tour took {tour.seconds:.0f} s.")
        comparisons = list(tour.comparisons)
    _save(options, comparisons)


def _save(options: argparse.Namespace, comparisons: Sequence[Comparison]) -> None:
    if options.json is not None:
        found = [json.loads(comparison.to_json()) for comparison in comparisons]
        text = json.dumps(found if len(found) > 1 else found[0], indent=2) + "\n"
        options.json.write_text(text, encoding="utf-8")
    if options.csv is not None:
        from ddn_cvx.comparison.export import as_csv

        options.csv.write_text(as_csv(comparisons), encoding="utf-8")
    if options.markdown is not None:
        text = "\n".join(comparison.to_markdown() for comparison in comparisons)
        options.markdown.write_text(text, encoding="utf-8")


def _check_device(device: str) -> None:
    import torch

    try:
        kind = torch.device(device).type
    except RuntimeError:
        raise UsageError(f"there is no device {device!r}; write cpu or cuda.") from None
    if kind == "cuda" and not torch.cuda.is_available():
        raise UsageError("cuda is not available: this torch sees no CUDA device.")


def _console() -> Console:
    from rich.console import Console

    return Console(highlight=False)


# -- declarations by name -------------------------------------------------------------------------


def locate(name: str) -> Declaration:
    """The declaration of a catalogue entry, or of ``path/to/file.py:name``.

    In a file, ``name`` is a :class:`~ddn_cvx.Declaration`, a cvxpy problem, or a function without
    arguments that returns one.

    Raises:
        UsageError: there is none; the message names the nearest.
    """
    path, _, attribute = name.rpartition(":")
    if path:
        return _in_file(Path(path), attribute)
    if name.endswith(".py"):
        raise UsageError(f"say which declaration in the file: {name}:name.")
    from ddn_cvx.problems import catalogue

    known = catalogue()
    if name not in known:
        raise UsageError(
            f"there is no problem {name!r} in the catalogue{_similar(name, known)}; "
            "`ddn-cvx list` shows all. A declaration of your own is path/to/file.py:name."
        )
    return known[name]()


def _in_file(path: Path, attribute: str) -> Declaration:
    from ddn_cvx.comparison import words
    from ddn_cvx.declaration import Declaration

    if not path.is_file():
        raise UsageError(f"there is no file {path}.")
    if path.suffix != ".py":
        raise UsageError(f"{path} is not a Python file.")
    # As for a script: the file's neighbours can be imported.
    sys.path.insert(0, str(path.resolve().parent))
    try:
        values = runpy.run_path(str(path))
    except Exception as error:
        raise UsageError(f"{path} raised {words.failure(error)}") from error
    finally:
        sys.path.pop(0)
    if attribute not in values:
        public = [name for name in values if not name.startswith("_")]
        raise UsageError(f"{path} has no {attribute!r}{_similar(attribute, public)}.")
    found = values[attribute]
    if callable(found) and not isinstance(found, Declaration):
        try:
            found = found()
        except Exception as error:
            raise UsageError(f"{attribute}() of {path} raised {words.failure(error)}") from error
    import cvxpy as cp

    if isinstance(found, cp.Problem):
        found = Declaration(found, found.parameters(), found.variables(), name=attribute)
    if not isinstance(found, Declaration):
        raise UsageError(
            f"{attribute} of {path} is a {type(found).__name__}; expected a ddn_cvx.Declaration, a "
            "cvxpy problem, or a function without arguments that returns one."
        )
    return found


def _similar(name: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(name, list(known), n=3, cutoff=0.5)
    return f" (did you mean {' or '.join(close)}?)" if close else ""
