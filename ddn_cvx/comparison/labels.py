"""Labels next to their markers, without overlaps."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# A label may go this far from its marker, in points; beyond _NEAR a thin line leads to it.
_DISTANCES = (7, 11, 16, 22, 30, 40, 52, 66, 82, 100)
_NEAR = 14
# Right first, then left, then above and below.
_ANGLES = (0, 25, -25, 180, 155, -155, 50, -50, 130, -130, 80, -80, 100, -100)


def place_labels(axes: Axes) -> None:
    """Move every annotation of gid "label" to the nearest place that is free.

    In the way are markers, lines of gid "spread", texts that are placed already, and the axes'
    edge. Greedy, from top to bottom; what finds no place stays at its marker.
    """
    from matplotlib.text import Annotation
    from matplotlib.transforms import Bbox

    renderer = axes.figure.canvas.get_renderer()  # type: ignore[attr-defined]
    found = [child for child in axes.get_children() if isinstance(child, Annotation)]
    labels = [child for child in found if child.get_gid() == "label"]
    point = axes.figure.dpi / 72  # pixels
    anchors = {label: axes.transData.transform(label.xy) for label in labels}
    taken = [child.get_window_extent(renderer) for child in found if child not in labels]
    taken += [Bbox.from_extents(*(a - 4 * point), *(a + 4 * point)) for a in anchors.values()]
    for line in axes.get_lines():
        if line.get_gid() == "spread":  # a marker's whiskers
            (x0, y), (x1, _) = axes.transData.transform(line.get_xydata())
            taken.append(Bbox.from_extents(x0, y - 2 * point, x1, y + 2 * point))
    inside = axes.get_window_extent(renderer)
    for label in sorted(labels, key=lambda entry: -anchors[entry][1]):
        label.set_verticalalignment("center")
        box = label.get_window_extent(renderer)
        place = _free_place(anchors[label], box.width, box.height, taken, inside, point)
        if place is None:
            continue
        centre, distance = place
        label.set_horizontalalignment("center")
        label.xyann = tuple((centre - anchors[label]) / point)
        label.anncoords = "offset points"
        half = (box.width / 2, box.height / 2)
        taken.append(Bbox.from_extents(*(centre - half), *(centre + half)))
        if distance > _NEAR:
            _lead(axes, label, centre, half, anchors[label])


def _free_place(
    anchor: Any, width: float, height: float, taken: list[Any], inside: Any, point: float
) -> tuple[Any, float] | None:
    """Centre in pixels and distance in points of the nearest free box, by angle."""
    import numpy as np
    from matplotlib.transforms import Bbox

    for distance in _DISTANCES:
        for angle in _ANGLES:
            across, up = math.cos(math.radians(angle)), math.sin(math.radians(angle))
            # The box touches the circle around the marker with its nearest side.
            side = 0.0 if abs(across) < 0.35 else math.copysign(width / 2, across)
            rise = math.copysign(height / 2, up) if abs(across) < 0.35 else 0.0
            centre = np.array(
                [
                    anchor[0] + distance * point * across + side,
                    anchor[1] + distance * point * up + rise,
                ]
            )
            box = Bbox.from_bounds(centre[0] - width / 2, centre[1] - height / 2, width, height)
            if not _contains(inside, box) or any(
                box.padded(point).overlaps(other) for other in taken
            ):
                continue
            return centre, distance
    return None


def _contains(outer: Any, inner: Any) -> bool:
    return bool(
        outer.x0 <= inner.x0
        and inner.x1 <= outer.x1
        and outer.y0 <= inner.y0
        and inner.y1 <= outer.y1
    )


def _lead(axes: Axes, label: Any, centre: Any, half: tuple[float, float], anchor: Any) -> None:
    """A hairline from the marker to the nearest point of the label's box."""
    end = [
        min(max(anchor[axis], centre[axis] - half[axis]), centre[axis] + half[axis])
        for axis in (0, 1)
    ]
    start, stop = axes.transData.inverted().transform([anchor, end])
    axes.plot(
        [start[0], stop[0]], [start[1], stop[1]], color=label.get_color(), linewidth=0.5,
        alpha=0.6, zorder=1, scalex=False, scaley=False,
    )  # fmt: skip
