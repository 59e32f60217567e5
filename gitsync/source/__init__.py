"""Source: from a repository and a ref to one commit's tree.

Owns everything git: which URLs may be contacted and with which credentials, the bare mirrors (a cache, one per
repository, that may vanish at any time), reading a commit without a checkout, which paths differ between two commits.

It never decides what a commit means: it renders nothing, builds nothing and knows no Kubernetes object. It never
checks a tree out (``export`` writes plain files), never runs a hook, and never follows a submodule.

``git`` acts, through ``process`` alone; ``snapshot`` and ``commits`` read; ``remote``, ``versions``, ``tree`` and
``changes`` are pure.
"""

from gitsync.source.git import GitSource
from gitsync.source.remote import GitCredentials, GitPolicy, Ref
from gitsync.source.snapshot import GitSnapshot

__all__ = ["GitCredentials", "GitPolicy", "GitSnapshot", "GitSource", "Ref"]
