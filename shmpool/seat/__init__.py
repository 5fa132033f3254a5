"""One seat in one pool: what it has mapped and open, and what it is the custodian of."""
