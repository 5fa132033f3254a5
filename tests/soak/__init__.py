"""The soak: real processes that produce and read under load while they and their broker are killed.

    python -m tests.soak --minutes 10 --workers 8 --kill-workers --kill-broker --objects direct --disturb

A real `shmpoold` that keeps its pool over restarts; forked workers that lease, fill, publish and
hand handles to one another through mailboxes of the parent. Every payload carries its checksum,
its producer and its sequence number. The parent (`engine`) kills at random, the workers
(`worker`) die by themselves in every way they know, and with ``--disturb`` their own threads fork,
close pools and raise exceptions in one another (`disturbances`). In the end everything stops and the account
(`account`) must close: nothing lost, nothing wrong read, nothing left.
"""
