"""The edges of a process's life: forks, closing, exit."""
