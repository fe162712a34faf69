"""One file for each cone, with all that the cone is, and the product of cones over rows."""
