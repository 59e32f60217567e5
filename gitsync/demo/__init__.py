"""``gitsync demo``: a sandbox, a git host, a registry and gitsync itself, on loopback, until somebody has seen enough.

Owns what the parts need around them: a base image where none can be pulled (``base``), somebody who asks the app all
the time (``probe``), and that nothing of it all stays behind (``home``). It does nothing that a person with the same
parts could not do, and decides nothing about a deployment. Only the command line imports it, and it prints nothing.
"""

from gitsync.demo.demo import Figures, Options, Screen, run

__all__ = ["Figures", "Options", "Screen", "run"]
