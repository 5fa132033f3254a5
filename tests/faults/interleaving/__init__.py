"""An exhaustive interleaving check of the real ledger code.

The client (`Pool.lease`, `publish`, `open`, `release`, `discard`, magazines, sessions) and the
broker's core run unchanged, over memory and byte locks that hand control to an explorer at
every shared read, store, lock, unlock and message. The explorer visits every state that one
slot with a few processes can get into, with deaths, endless pauses and restarts of the broker
at any step, under sequential consistency and with x86's store buffers.

A reader may fork, or a writer: the parent's hooks, guards and releases are the real ones, the child
keeps a view and the pages that it inherits until it goes; a writer's child copies it before that.

Covered: one pooled slot, or one row of direct segments, up to two tickets, the words of its row, the seat
table and the wanted flag, the tickets' locks and swaps, what a broker takes for who cannot swap, the messages on
each connection, the payload (one word that stands for all bytes), expiry, discard, custody, adoption,
reconnecting. Of direct segments: their names, inodes and lengths, each inode's payload, maps that stay, what a
producer keeps, returns at a look or a recall or leaves, spares that are served as they lie, made longer or removed.

Of the broker's chores, each access of the ledger is a step beside clients that work on: settling what has ended, the
custody's sweep and that of what living clients gave back (also where every bell is lost), what lies in a queue that is
gone, cooling, the replacement of old slots (with a slot's pages: they never go while a row has them), the restart scan.
Its other parts look at rows that are its own, or only report what they read.

Not covered: runs, several slots, shared publications, segments that are asked for ahead, the rows
of streams, threads of one process (what the helper thread does is done where its client waits or
between two calls), a child's hooks, several forks, views that outlive their buffer in one process,
the shell's sockets (a connection is two queues that end with the process), processors that reorder
more than x86, counters (each has one writer and decides nothing).

A queue has worlds of its own, over the same pool (`queue_memory`, `queue_clients`, `queue_world`, `queue_scenarios`,
`queue_mutants`): its semaphores and their mending, put and get of small items, batches and leases, hands, a full
queue, shutdown. Not covered there: `join`, the bell's FIFO, items of several granules, threads, a queue's end with its
last member (the broker's, see `core.objects.queues`).

`memory` has the words and what may be stored in them, `machines` runs parties one step at a
time, `clients` and `brokers` have the processes (real code, patched where it meets the kernel),
`forking` what belongs to forks, `start` how all begins, `world` what a step does and what must
hold, `rest` what must hold in the end, `explorer` the search, `scenarios` and `mutants` what is
explored.
"""
