"""One seat in one pool: what it has mapped, and what it is the custodian of."""
