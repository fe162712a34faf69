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


def answers(path: Path, options: dict[str, Any]) -> None:
    """All records in one file, which is written anew after each problem."""
    from checkouts.cases import Chosen, cases, quietly

    resume = options.pop("resume")
    records: dict[str, Any] = torch.load(path)["records"] if resume and path.exists() else {}
    problem = ""
    for name, run in cases(Chosen(**options)):
        if name in records:
            continue
        if name.split(" | ")[0] != problem:
            torch.save({"records": records}, path)
            problem = name.split(" | ")[0]
        start = time.process_time()
        records[name] = quietly(run)
        spent = time.process_time() - start
        print(f"{len(records):5d} {spent:7.2f} s  {name}", file=sys.stderr, flush=True)
    torch.save({"records": records}, path)


def calls(root: Path) -> None:
    """Calls of functions whose code lies in the checkout's package."""
    from checkouts.steps import COUNTED, count_calls

    counted = {name: count_calls(build(), root, warm) for name, (build, warm) in COUNTED.items()}
    print(json.dumps(counted))


def times() -> None:
    """``{"prepare": NAME}``, ``{"run": NAME, "count": N}`` and ``{"forget": NAME}``."""
    from checkouts.benchmark_steps import benchmark_steps
    from checkouts.steps import TIMED, Timed

    steps = TIMED | benchmark_steps()
    ready: dict[str, Timed] = {}
    for line in sys.stdin:
        command = json.loads(line)
        if "prepare" in command:
            name = command["prepare"]
            ready[name] = Timed(steps[name]())
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
        answers(Path(path), json.loads(options))
    elif mode == "suite":
        from checkouts.suites import run_suite

        name, path, options = rest
        run_suite(Path(root).resolve(), name, Path(path), **json.loads(options))
    elif mode == "calls":
        calls(Path(root).resolve())
    else:
        times()


if __name__ == "__main__":
    main()
