"""Dedicated solvers: closed forms and special algorithms that catalogue entries carry.

They speak tensors only: any leading batch dimensions, no Python loop over batch elements, any
device, float32 and float64. They know nothing of cvxpy, declarations or layers.
"""
