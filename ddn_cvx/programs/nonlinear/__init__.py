"""Nonlinear programs: torch functions of a flat unknown, with their derivatives."""
