"""What would change, decided before the first write: desired × live × inventory → ``Plan``. All of it is pure.

It owns the order (``waves``), the comparison (``diff``), the rules of zero downtime (``lint``), what can be changed in
place (``immutable``) and every veto: somebody else's object, an immutable field, an exclusive claim, too many deletions
(``decide``). It reads no cluster, no clock and no file, and it applies nothing; what it is not told it does not know.
"""

from gitsync.plan.decide import OTHER_TOOL, PlanOptions, autoscaled, owner_of, plan

__all__ = ["OTHER_TOOL", "PlanOptions", "autoscaled", "owner_of", "plan"]
