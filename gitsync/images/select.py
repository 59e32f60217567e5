"""Which images of the manifests are built from this repository. Pure.

The rule, in this order:

1. A reference pinned by digest is left alone: it says exactly which image it wants.
2. An ``images:`` entry whose name is the reference, or the reference without its tag, builds it.
3. Otherwise the reference must look like nobody else's: no registry host, and no tag but ``latest``. ``node:18``
   stays Docker Hub's even beside a directory ``node/``, and so does ``kubetm/hello:v1``: a tag names a version that
   somebody published. (``left_alone`` tells of such near misses.)
4. Then a file named ``Dockerfile`` builds it if its directory is named like the last part of the reference
   (``kubetm/hello`` → ``hello/Dockerfile``, ``apps/hello/Dockerfile``). The root's directory name is the repository's.
5. Two such Dockerfiles for one reference, or two references for one Dockerfile, are an error that names both.
"""

import posixpath
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from gitsync.errors import Invalid
from gitsync.images.reference import Reference, parse_reference
from gitsync.model import ImageSpec, Origin

_DOING = "deciding which images to build"


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageUse:
    """An image reference as a manifest writes it, and where."""

    reference: str
    origin: Origin


def select(
    dockerfiles: Iterable[str], uses: Iterable[ImageUse], specs: Sequence[ImageSpec] = (), *, repository: str = ""
) -> tuple[ImageSpec, ...]:
    """One spec per distinct reference that is ours, named exactly as the manifest writes it, in order of first use.

    ``dockerfiles`` are paths from the root (others than ``…/Dockerfile`` are passed over, so all paths of a tree will
    do), ``specs`` the ``images:`` entries, ``repository`` the repository's URL or path. A reference that cannot be
    parsed is left alone here: the API server has the word on it.
    """
    directories = _directories(dockerfiles, repository)
    chosen: dict[str, ImageSpec] = {}
    taken: dict[str, ImageUse] = {}
    for use in uses:
        reference = _parse(use.reference)
        if reference is None or reference.digest or use.reference in chosen:
            continue
        spec = _explicit(use, reference, specs)
        if spec is None and not _foreign(reference):
            spec = _implicit(use, reference, directories, taken)
        if spec is not None:
            chosen[use.reference] = spec
    return tuple(chosen.values())


def left_alone(
    dockerfiles: Iterable[str], uses: Iterable[ImageUse], specs: Sequence[ImageSpec] = (), *, repository: str = ""
) -> tuple[tuple[ImageUse, str], ...]:
    """References that were taken for somebody else's although a Dockerfile has their name, with the reason."""
    directories = _directories(dockerfiles, repository)
    near: dict[str, tuple[ImageUse, str]] = {}
    for use in uses:
        reference = _parse(use.reference)
        if reference is None or use.reference in near:
            continue
        found = directories.get(reference.path.rpartition("/")[2])
        why = "a digest" if reference.digest else _foreign(reference)
        if found and why and (reference.digest or _explicit(use, reference, specs) is None):
            text = f"has {why}, so {found[0]} is not built for it; an images: entry with its name would say otherwise"
            near[use.reference] = (use, text)
    return tuple(near.values())


def _parse(text: str) -> Reference | None:
    try:
        return parse_reference(text)
    except Invalid:
        return None


def _foreign(reference: Reference) -> str:
    if reference.host:
        return "a registry host"
    return f"the tag “{reference.tag}”" if reference.tag not in ("", "latest") else ""


def _directories(dockerfiles: Iterable[str], repository: str) -> dict[str, list[str]]:
    """Dockerfiles by the name of their directory."""
    root = repository.rstrip("/").replace(":", "/").rpartition("/")[2].removesuffix(".git")
    found: dict[str, list[str]] = {}
    for path in sorted(set(dockerfiles)):
        directory, name = posixpath.split(path)
        if name == "Dockerfile" and (directory or root):
            found.setdefault(posixpath.basename(directory) or root, []).append(path)
    return found


def _explicit(use: ImageUse, reference: Reference, specs: Sequence[ImageSpec]) -> ImageSpec | None:
    found = [spec for spec in specs if spec.name in (use.reference, reference.name)]
    exact = [spec for spec in found if spec.name == use.reference] or found
    if len(exact) > 1:
        raise Invalid(
            f"two images: entries are named “{exact[0].name}” ({_file(exact[0])} and {_file(exact[1])})",
            doing=_DOING,
            hint="keep one",
        )
    return replace(exact[0], name=use.reference, dockerfile=_file(exact[0])) if exact else None


def _implicit(
    use: ImageUse, reference: Reference, directories: dict[str, list[str]], taken: dict[str, ImageUse]
) -> ImageSpec | None:
    found = directories.get(reference.path.rpartition("/")[2], [])
    if not found:
        return None
    if len(found) > 1:
        raise Invalid(
            f"image “{use.reference}” could be built from {' or '.join(found)}",
            doing=_DOING,
            origin=use.origin,
            hint=f"say which with an images: entry named {reference.name}",
        )
    other = taken.setdefault(found[0], use)
    if _parse_name(other) != reference.name:
        raise Invalid(
            f"{found[0]} could build “{use.reference}” or “{other.reference}” ({other.origin})",
            doing=_DOING,
            origin=use.origin,
            hint="say which with an images: entry, or write both alike",
        )
    return ImageSpec(name=use.reference, context=posixpath.dirname(found[0]) or ".", dockerfile=found[0])


def _parse_name(use: ImageUse) -> str:
    return parse_reference(use.reference).name


def _file(spec: ImageSpec) -> str:
    return posixpath.normpath(spec.dockerfile or posixpath.join(spec.context, "Dockerfile"))
