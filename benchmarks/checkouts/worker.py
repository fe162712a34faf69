"""The process that runs in one checkout; ``two_checkouts.py`` starts it.

Run: ``python -P -m checkouts.worker CHECKOUT MODE ...``, CHECKOUT first on ``PYTHONPATH``. Modes:

- ``answers FILE JSON``: run the cases that the options in JSON choose, save their records;
- ``suite NAME FILE JSON``: run a long suite, one result a line of the file;
- ``calls``: count the calls of one warm step, print them as JSON;
- ``times``: answer commands on standard input, one JSON line each, until it ends.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import torch


def answers(path: str, options: dict[str, Any]) -> None:
    """All records in one file, with the seconds that each case took."""
    from checkouts.cases import cases, quietly

    records: dict[str, Any] = {}
    seconds: dict[str, float] = {}
    for name, run in cases(options["names"], options["solvers"], options["batches"]):
        start = time.process_time()
        records[name] = quietly(run)
        seconds[name] = time.process_time() - start
        print(f"{len(records):5d} {seconds[name]:7.2f} s  {name}", file=sys.stderr, flush=True)
    torch.save({"records": records, "seconds": seconds}, path)


def calls(root: Path) -> None:
    """Calls of functions whose code lies in the checkout's package."""
    from checkouts.steps import COUNTED, count_calls

    counted = {name: count_calls(build(), root, warm) for name, (build, warm) in COUNTED.items()}
    print(json.dumps(counted))


def times() -> None:
    """``{"prepare": NAME}``, ``{"run": NAME, "count": N}`` and ``{"forget": NAME}``."""
    from checkouts.steps import TIMED, Timed

    ready: dict[str, Timed] = {}
    for line in sys.stdin:
        command = json.loads(line)
        if "prepare" in command:
            name = command["prepare"]
            ready[name] = Timed(TIMED[name]())
            answer: Any = {"seconds": ready[name].warm()}
        elif "forget" in command:
            del ready[command["forget"]]
            answer = {}
        else:
            answer = ready[command["run"]].run(command["count"])
        print(json.dumps(answer), flush=True)


def main() -> None:
    """One mode, after a look at which package is imported."""
    import ddn_cvx

    root, mode, *rest = sys.argv[1:]
    found = Path(ddn_cvx.__file__).resolve()
    if not found.is_relative_to(Path(root).resolve()):
        raise SystemExit(f"imported {found}, not the package of {root}")
    torch.set_num_threads(1)
    if mode == "answers":
        path, options = rest
        answers(path, json.loads(options))
    elif mode == "suite":
        from checkouts.suites import run_suite

        name, path, options = rest
        chosen = json.loads(options)
        data = Path(chosen["data"]) if chosen["data"] else None
        run_suite(Path(root).resolve(), name, Path(path), data, chosen["names"])
    elif mode == "calls":
        calls(Path(root).resolve())
    else:
        times()


if __name__ == "__main__":
    main()
