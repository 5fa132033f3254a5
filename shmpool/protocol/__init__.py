"""The vocabulary that client and broker share. No IO, no clock, no shared state.

========== =====================================================================
word       meaning
========== =====================================================================
segment    one named ``multiprocessing.shared_memory`` block, owned by the broker
tier       all slots of one size: one sparse segment of fixed virtual size
slot       a fixed range of a tier's segment
chunk, run a slot of a chunk tier; adjacent chunks of one lease
extent     one run of a chunked lease; a lease is *scattered* when it has several
warm, cold a slot whose pages are reserved, or not
lease      the right to write one slot, one or several runs, or a direct segment
publication a published buffer, from publish until its last ticket is done
ticket     one reader's right to open a publication once
handle     24 bytes that name a publication and a ticket
seat       one connection's number
ledger     the shared table: a **row** for each slot, a **cell** for each ticket
generation counts a row's uses; a handle of another generation is stale
magazine   slots that a client holds ready, so that a lease is a local pop
custodian  the one party that may write a row's grant word now
epoch      counts the brokers that have served one pool
========== =====================================================================

Rooms: :mod:`.ledger` (words of a row), :mod:`.states` (a slot's life),
:mod:`.header` (what only the broker writes), :mod:`.handle`, :mod:`.sizing`
(categories, strategies, tiers), :mod:`.messages` and :mod:`.framing` (the socket),
:mod:`.codes` (refusals), :mod:`.names` (of segments), :mod:`.figures` (of stats).
"""
