"""Modules that people plug into models: pools, projections, transport, pose, programs."""

from ddn_cvx.nn.blind import BlindPnP
from ddn_cvx.nn.pooling import RobustPool1d, RobustPool2d, RobustVectorPool
from ddn_cvx.nn.pose import PerspectiveNPoint
from ddn_cvx.nn.programs import QuadraticProgram
from ddn_cvx.nn.projections import PolyhedronProjection, Projection
from ddn_cvx.nn.transport import Sinkhorn

__all__ = [
    "BlindPnP",
    "PerspectiveNPoint",
    "PolyhedronProjection",
    "Projection",
    "QuadraticProgram",
    "RobustPool1d",
    "RobustPool2d",
    "RobustVectorPool",
    "Sinkhorn",
]
