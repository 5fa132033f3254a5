"""The thin shell: sockets, segments, processes, signals. It obeys the core."""
