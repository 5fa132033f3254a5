"""What users would pick instead of shmpool, each behind the same interface.

A peer's module imports the standard library and the peer's own package only, so that it
runs in an interpreter that has nothing else (Plasma's)."""
