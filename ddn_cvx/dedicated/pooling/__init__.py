"""Robust pooling: what minimizes a sum of penalties of distances to given points."""
