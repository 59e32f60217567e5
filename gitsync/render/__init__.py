"""From a commit's files to the objects it wants: YAML, Kustomize or Helm in, ``Desired`` out.

Owns reading (strictly, as ``kubectl`` reads), the checks that need nothing but the files, image references and the
digests stamped on pod templates. Never talks to a cluster, a registry or any network, never checks out a tree for
plain YAML, and never writes outside a temporary directory of its own.
"""

from gitsync.render.manifests import RenderOptions, render, render_directory, with_namespace
from gitsync.render.pin import ImageUse, pin, references, stamp
from gitsync.render.reader import Reader

__all__ = [
    "ImageUse",
    "Reader",
    "RenderOptions",
    "pin",
    "references",
    "render",
    "render_directory",
    "stamp",
    "with_namespace",
]
