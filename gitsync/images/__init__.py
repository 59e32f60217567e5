"""Images: from a commit's tree to digests in a registry.

Owns which images of the manifests this repository builds (``select``), what a build depends on (``inputs``,
``fingerprint``), finding or building them once (``store.Images``), and the two outside worlds that takes: an OCI
registry (``registry``) and a builder (``builder`` and one file per backend).

It never reads a manifest, never talks to Kubernetes, never decides when a base image is refreshed (it is given the
locked digests and returns them; only one that its registry has thrown away is resolved anew), and never deletes
anything from a registry.
"""

from gitsync.images.builder import BuildRequest, ImageBuilder, choose
from gitsync.images.credentials import RegistryCredentials
from gitsync.images.fingerprint import fingerprint
from gitsync.images.registry import Access, Registry
from gitsync.images.select import ImageUse, left_alone, select
from gitsync.images.store import Destination, Images, describe

__all__ = [
    "Access",
    "BuildRequest",
    "Destination",
    "ImageBuilder",
    "ImageUse",
    "Images",
    "Registry",
    "RegistryCredentials",
    "choose",
    "describe",
    "fingerprint",
    "left_alone",
    "select",
]
