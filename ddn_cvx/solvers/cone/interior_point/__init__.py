"""The batched interior-point and active-set method of cone programs."""
