"""``python -m shmpool``: the ``shmpool`` command."""

from .cli import main

if __name__ == "__main__":
    main()
