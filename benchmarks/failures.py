"""A batch of 64 with three infeasible elements and one NaN: what each layer does with the other 60.

Run: ``python benchmarks/failures.py``
"""

from __future__ import annotations

import warnings
from typing import Any

import torch
from common import Layer, QuadraticProgram, Tensors, gradients, markdown_table, save

BATCH = 64
INFEASIBLE = (5, 23, 41)
NAN = 57


def spoiled_batch(program: QuadraticProgram) -> tuple[Tensors, Tensors]:
    """The batch without faults, and the batch with them."""
    good = program.draw(BATCH, seed=3)
    bad = tuple(tensor.clone() for tensor in good)
    _, q, G, h, _, _ = bad
    for element in INFEASIBLE:  # two opposite half-spaces that do not meet
        G[element, 1] = -G[element, 0]
        h[element, 0] = h[element, 1] = -1.0
    q[NAN, 0] = torch.nan
    return good, bad


def outcome(layer: Layer, good: Tensors, bad: Tensors, weights: torch.Tensor) -> dict[str, Any]:
    """Result of a call: an error, or how many of the sound elements kept their answer."""
    faulty = [*INFEASIBLE, NAN]
    sound = torch.tensor([e for e in range(BATCH) if e not in faulty])
    (alone,) = layer(*[tensor[sound] for tensor in good])
    try:
        (together,) = layer(*bad)
        found = gradients(layer, bad, weights)
    except Exception as error:  # the benchmark reports whatever is raised
        message = str(error).strip()
        return {
            "result": f"raises {type(error).__name__}",
            "sound elements returned": getattr(error, "solution", None) is not None
            and int((error.solution.status[sound] == 0).sum()),  # type: ignore[attr-defined]
            "named as faulty": [list(e) for e in getattr(error, "elements", ())],
            "message": message,
        }
    expected = gradients(layer, tuple(t[sound] for t in good), weights[sound])
    moved = max(
        float((got[sound] - want).abs().max()) for got, want in zip(found, expected, strict=True)
    )
    kept = ((together[sound] - alone).abs().amax(1) == 0).sum()
    return {
        "result": "returns",
        "sound elements returned": int(together[sound].isfinite().all(1).sum()),
        "sound elements unchanged bit for bit": int(kept),
        "largest change of their gradient": moved,
        "faulty elements that are NaN": int(together[faulty].isnan().all(1).sum()),
        "faulty elements with zero gradient": sum(
            all(float(g[e].abs().max()) == 0.0 for g in found) for e in faulty
        ),
    }


def main() -> None:
    """Run both layers, print and save."""
    from cvxpylayers.torch import CvxpyLayer

    import ddn_cvx

    warnings.filterwarnings("ignore", category=DeprecationWarning)
    program = QuadraticProgram(10, 5, 2)
    problem, parameters, variables = program.problem()
    good, bad = spoiled_batch(program)
    weights = torch.randn(
        BATCH, program.n, dtype=torch.float64, generator=torch.Generator().manual_seed(1)
    )

    def ours(policy: str) -> ddn_cvx.DeclarativeLayer:
        return ddn_cvx.DeclarativeLayer(problem, parameters, variables, on_failure=policy)

    layers: dict[str, Layer] = {
        "cvxpylayers, default": CvxpyLayer(problem, parameters, variables),
        'ddn_cvx, on_failure="raise" (default)': ours("raise"),
        'ddn_cvx, on_failure="nan"': ours("nan"),
        'ddn_cvx, on_failure="warn"': ours("warn"),
    }
    record: dict[str, Any] = {}
    for name, layer in layers.items():
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", UserWarning)
            warnings.filterwarnings("ignore", category=DeprecationWarning)
            record[name] = outcome(layer, good, bad, weights)
        said = {str(warning.message) for warning in caught}
        record[name]["warnings"] = sorted(said)
    named = ours("nan").solve(*bad)
    statuses = {
        int(element): ddn_cvx.Status(int(named.status[element])).name
        for element in (named.status != 0).nonzero().squeeze(1)
    }
    record["status of the faulty elements"] = statuses
    rows = [
        (
            name,
            record[name]["result"],
            record[name]["sound elements returned"] or 0,
            record[name].get("sound elements unchanged bit for bit", ""),
            len(record[name]["warnings"]) or "",
        )
        for name in layers
    ]
    header = ["layer", "the call", "of 60 sound returned", "unchanged bit for bit", "warnings"]
    raised = {name: record[name].get("message", "") for name in layers if name in record}
    quotes = "\n\n".join(
        f"{name} says:\n\n```\n{message}\n```" for name, message in raised.items() if message
    )
    text = (
        f"A batch of {BATCH}; elements {', '.join(map(str, INFEASIBLE))} are infeasible, element "
        f"{NAN} has a NaN in a parameter.\n\n{markdown_table(header, rows)}\n\n"
        f"`layer.solve(...).status` of the faulty elements: "
        + ", ".join(f"{element} {status}" for element, status in statuses.items())
        + f".\n\n{quotes}"
    )
    save("failures", "One bad element in a batch", text, record)


if __name__ == "__main__":
    main()
