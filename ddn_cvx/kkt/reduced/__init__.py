"""KKT systems of cone programs in their cheapest structure."""
