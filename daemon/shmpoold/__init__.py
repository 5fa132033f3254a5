"""The shmpool broker: a pure core that decides, and a thin shell that obeys.

``core/`` has no sockets, files, clock or memory maps: events go in with the time as an
argument, actions come out. ``shell/`` owns those and has no opinions.
"""
