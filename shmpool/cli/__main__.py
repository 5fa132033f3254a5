"""``python -m shmpool.cli``."""

from . import main

if __name__ == "__main__":
    main()
