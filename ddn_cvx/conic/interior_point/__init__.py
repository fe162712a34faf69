"""A batched interior-point method in torch for all but power cones."""
