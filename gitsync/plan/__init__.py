"""What would change, decided before the first write: desired × live × inventory → ``Plan``. All of it is pure.

It owns the order (``waves``), the comparison (``diff``), the rules of zero downtime (``lint``) and every veto: somebody
else's object, an immutable field, an exclusive claim, too many deletions. It reads no cluster, no clock and no file, and
it applies nothing: what it is not told of it does not know.
"""
