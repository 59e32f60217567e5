"""gitsync: `git push` is the whole deployment procedure."""

__version__ = "0.1.0"
