"""Seeded mistakes in the pure rooms: the broker's core and the protocol. ``python -m tests.mutation``.

A mutant is the code with one mistake in one function or constant: another comparison, one more, a
statement left out. The tests of the core and of the protocol are collected once; then each mutant is
a forked child that runs those which call its function, the quickest first, until one fails. A mutant
that none of them notices survives: it is either in `survivors.toml`, with the reason why it does
nothing wrong, or a test is missing. Not part of CI: it takes hours for all, so give it a sample.

Not covered: the client and the shell, whose tests have real processes; texts for people; types.
"""
