"""``gitsync`` and ``python -m gitsync``."""

from gitsync.cli import main

if __name__ == "__main__":
    main()
