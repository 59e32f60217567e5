"""Every error gitsync raises on purpose, and what a caller does about each.

    GitsyncError                     something gitsync can explain
    ├── Transient                    bad luck: retry with back-off, nothing is held against the commit
    │   └── Waiting(retry_after)     bad luck with a known remedy: something else must happen first
    ├── Invalid                      the commit, the Application or a setting is wrong: retrying cannot help
    │   ├── Refused                  a valid request that a policy or the API server refused
    │   └── BuildFailed              the image's own build said no (evidence against the commit)
    └── Held                         a person must approve before this goes on

The class says retry, wait or stop; the fields say what was being done, to which object, where it came from and what
to do next. A library's error is translated once, in the module that imports the library, with ``raise … from``.
No field may ever carry a credential or a value of a Secret.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gitsync.model import ObjectRef, Origin


class GitsyncError(Exception):
    """``message`` says what went wrong, ``doing`` what was being done; both are complete without the traceback.

    ``str(error)`` is one line:
    ``while applying Deployment/shop/web (shop@3f2a1b0 manifests/web.yaml:12 spec.replicas): must be ≥ 0; fix …``
    """

    #: CamelCase reason for conditions and Events; subclasses and callers override it.
    reason: str = "Error"

    def __init__(
        self,
        message: str,
        *,
        doing: str = "",
        ref: ObjectRef | None = None,
        origin: Origin | None = None,
        hint: str = "",
        reason: str = "",
    ) -> None:
        super().__init__(message)
        self.message = message
        self.doing = doing
        self.ref = ref
        self.origin = origin
        self.hint = hint
        if reason:
            self.reason = reason

    def __str__(self) -> str:
        subject = " ".join(part for part in (self.doing, str(self.ref) if self.ref else "") if part)
        place = f"({self.origin})" if self.origin else ""
        head = " ".join(part for part in (subject, place) if part)
        text = f"while {head}: {self.message}" if subject else f"{head}: {self.message}" if head else self.message
        return f"{text.rstrip('.')}; {self.hint}" if self.hint else text


class Transient(GitsyncError):
    """Bad luck: unreachable, unpullable, unschedulable, timed out. Keep the old version and retry with back-off."""

    reason = "Unavailable"


class Waiting(Transient):
    """Something else must happen first (a dependency, a quota, ``Retry-After``); ``retry_after`` is in seconds."""

    reason = "Waiting"

    def __init__(
        self,
        message: str,
        *,
        retry_after: float = 5.0,
        doing: str = "",
        ref: ObjectRef | None = None,
        origin: Origin | None = None,
        hint: str = "",
        reason: str = "",
    ) -> None:
        super().__init__(message, doing=doing, ref=ref, origin=origin, hint=hint, reason=reason)
        self.retry_after = retry_after


class Invalid(GitsyncError):
    """The input is wrong and stays wrong until a person changes it."""

    reason = "Invalid"


class Refused(Invalid):
    """A policy or the API server refused something that parsed."""

    reason = "Refused"


class BuildFailed(Invalid):
    """A Dockerfile step failed; ``message`` ends with the last lines of the build's output."""

    reason = "BuildFailed"


class Held(GitsyncError):
    """Nothing is wrong, but a person must approve first (much would be deleted, history was rewritten)."""

    reason = "ApprovalRequired"
    unrelated = "UnrelatedHistory"  # the reason of the second
