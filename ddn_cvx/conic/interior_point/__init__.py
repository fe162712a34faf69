"""A batched interior-point method in torch for zero, nonnegative and second-order cones."""
