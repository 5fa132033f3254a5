"""The demo's job: real files, through the pool, between real processes.

Reader processes put every file below a path into leases, worker processes open the
handles and compute digests, and each digest is checked against one computed from the
file itself. Then the same job runs over ``multiprocessing.Queue``.

Rooms: :mod:`.files` (which files, and what can be wrong with them), :mod:`.tasks` (what
the processes do), :mod:`.crew` (starting, watching and ending them), :mod:`.job` (the
whole, and the verdict). What it looks like is `shmpool.cli.demo`'s.
"""
