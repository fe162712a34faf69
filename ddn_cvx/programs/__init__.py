"""What a declaration compiles to: variables, rows, cones, recovery of the user's variables."""
