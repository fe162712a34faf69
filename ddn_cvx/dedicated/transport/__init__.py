"""Entropy-regularised optimal transport, differentiable to second order."""

from ddn_cvx.dedicated.transport.entropic_transport import sinkhorn

__all__ = ["sinkhorn"]
