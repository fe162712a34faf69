"""How two checkouts of this package are run beside each other and compared."""
