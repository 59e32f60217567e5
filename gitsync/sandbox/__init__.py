"""A throw-away one-node cluster in this process that speaks the Kubernetes API.

Owns: the API server (``api`` → ``registry`` → ``store``), the controllers a rollout needs, a node that runs pods as
containers with podman or docker, and a Service proxy on loopback. It is a verified fake: ``tests/contract`` runs on it
and on real Kubernetes, and any difference is a bug here.
Never imports a stage of gitsync and is imported by the command line and tests alone; keeps nothing across a restart;
what it does not implement answers as the API answers for a resource that it does not have.
"""

from gitsync.sandbox.engine import SandboxError
from gitsync.sandbox.sandbox import Sandbox, serve

__all__ = ["Sandbox", "SandboxError", "serve"]
