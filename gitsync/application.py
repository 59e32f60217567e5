"""The Application resource: its spec and status, parsed and validated, and the CRD that teaches them to a cluster.

The models below are the one source of truth: ``crd()`` derives the structural schema from them, so that what the API
server accepts and what this module accepts cannot drift apart (``deploy/crd.yaml`` is its output). Pure: no I/O, and
no knowledge of a cluster, of git or of a registry. What a process may reach (plain ``http://``, ``file://``) is for
``source`` to refuse; here a URL only has to be well formed and free of credentials.
"""

from __future__ import annotations

import difflib
import posixpath
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from types import MappingProxyType
from typing import Annotated, Any, Literal, Self, cast
from urllib.parse import urlsplit

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    TypeAdapter,
    ValidationError,
    WithJsonSchema,
    model_validator,
)
from pydantic.alias_generators import to_camel
from pydantic_core import PydanticCustomError
from typing_extensions import TypedDict

from gitsync.errors import Invalid
from gitsync.model import API_GROUP, Json, ObjectRef

VERSION = "v1alpha1"
API_VERSION = f"{API_GROUP}/{VERSION}"
KIND = "Application"
PLURAL = "applications"
FINALIZER = f"{API_GROUP}/finalizer"  # set on an Application with ``deletionPolicy: delete``, and only then

DEFAULT_BRANCH = "main"
DEFAULT_PATHS = ("manifests", "deploy", "k8s")  # the first that exists, when ``source.path`` is not given
MAX_NAME = 63  # the name is a label's value on every object we apply

_UNIT_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}
_DURATION = r"^([0-9]+(\.[0-9]+)?(ms|s|m|h))+$"
_DNS_LABEL = r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"
_DNS_NAME = r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*$"
_REPOSITORY = r"^[a-z0-9][a-zA-Z0-9.:-]*(/[a-z0-9]+([._-]+[a-z0-9]+)*)*$"
_IMAGE_NAME = r"^[a-z0-9][a-zA-Z0-9.:/_-]*$"
_URL_SCHEMES = frozenset({"https", "http", "ssh", "git", "file"})
_SCP_LIKE = re.compile(r"(?:[A-Za-z0-9._-]+@)?[A-Za-z0-9][A-Za-z0-9.-]*:(?![/\\:])[^\s:]+")
_CREDENTIALS = re.compile(r"[^/@:]+:[^/@][^@]*@")  # user:password@host/path, where somebody left out https://


# ---------------------------------------------------------------- values


def parse_duration(value: object) -> timedelta:
    """``"1h30m"`` → timedelta, in Go's notation with the units ms, s, m and h. Raises ``ValueError``."""
    if isinstance(value, timedelta):
        return value
    if not isinstance(value, str) or not re.fullmatch(_DURATION, value):
        raise ValueError('must be a duration such as "30s", "5m" or "1h30m"')
    parts: list[tuple[str, str, str]] = re.findall(r"([0-9]+(\.[0-9]+)?)(ms|s|m|h)", value)
    try:
        return timedelta(seconds=sum(float(number) * _UNIT_SECONDS[unit] for number, _, unit in parts))
    except OverflowError:
        raise ValueError("is longer than any deployment can wait") from None


def format_duration(value: timedelta) -> str:
    """The shortest notation that ``parse_duration`` reads back: ``timedelta(seconds=90)`` → ``"1m30s"``."""
    rest, text = round(value.total_seconds() * 1000), ""
    for unit, size in (("h", 3_600_000), ("m", 60_000), ("s", 1000), ("ms", 1)):
        count, rest = divmod(rest, size)
        text += f"{count}{unit}" if count else ""
    return text or "0s"


def _at_least(seconds: int) -> AfterValidator:
    def check(value: timedelta) -> timedelta:
        if value.total_seconds() < seconds:
            raise ValueError(f"must be at least {seconds}s")
        return value

    return AfterValidator(check)


def _rule(rule: str, message: str) -> dict[str, Any]:
    """A rule in CEL that the API server checks; the models check the same in Python."""
    return {"x-kubernetes-validations": [{"rule": rule, "message": message}]}


Duration = Annotated[
    timedelta,
    _at_least(5),
    BeforeValidator(parse_duration),
    PlainSerializer(format_duration),
    WithJsonSchema(
        {"type": "string", "pattern": _DURATION, "maxLength": 32}
        | _rule("duration(self) >= duration('5s')", "must be at least 5s"),
        mode="validation",
    ),
]


def _default(text: str) -> Any:
    """A duration's default, which the schema shows in the notation that people write."""
    return Field(default=parse_duration(text), json_schema_extra={"default": text})


def check_repository_url(url: str) -> str:
    """A git URL without credentials: ``https://``, ``ssh://`` or ``user@host:path``. The value is never in the error.

    Raises ``ValueError``.
    """
    if url.startswith("-") or any(ord(char) <= 0x20 or ord(char) == 0x7F for char in url):
        raise ValueError("must not start with a dash or contain blanks or control characters")
    if "://" not in url:
        if _CREDENTIALS.match(url):
            raise ValueError("must not carry credentials: put them into a Secret and name it in source.secretRef")
        if _SCP_LIKE.fullmatch(url):
            return url
        raise ValueError("must be an https:// or ssh:// URL, or user@host:path")
    try:
        parts = urlsplit(url)
        _ = parts.port
    except ValueError:
        raise ValueError("is not a well-formed URL") from None
    if parts.scheme not in _URL_SCHEMES:
        raise ValueError("must be an https:// or ssh:// URL, or user@host:path")
    user_allowed = parts.scheme == "ssh" and parts.password is None
    if "@" in parts.netloc and not user_allowed:
        raise ValueError("must not carry credentials: put them into a Secret and name it in source.secretRef")
    if parts.query or parts.fragment:
        raise ValueError("must not have a query or a fragment")
    if parts.scheme != "file" and not parts.hostname:
        raise ValueError("names no host")
    if not parts.path.strip("/"):
        raise ValueError("names no repository on the host")
    return url


def _check_path(path: str) -> str:
    if path.startswith("/") or ".." in path.split("/") or any(ord(char) < 0x20 for char in path):
        raise ValueError('must be a path inside the repository, relative to its root, without ".."')
    return posixpath.normpath(path) if path else ""


def _no_yaml_boolean(value: object) -> object:
    if value is False:
        raise ValueError('must be a string: YAML reads an unquoted off as false, write "off"')
    return value


def _unique(what: str, keys: Iterable[object]) -> None:
    seen: set[object] = set()
    for key in keys:
        if key in seen:
            raise PydanticCustomError("duplicate", "names {what} {key} twice", {"what": what, "key": str(key)})
        seen.add(key)


RepositoryPath = Annotated[
    str,
    AfterValidator(_check_path),
    Field(
        max_length=512,
        json_schema_extra=_rule(
            "!self.matches('^/|^[.][.]$|^[.][.]/|/[.][.]/|/[.][.]$')",
            'must be a path inside the repository, relative to its root, without ".."',
        ),
    ),
]
DnsName = Annotated[str, Field(min_length=1, max_length=253, pattern=_DNS_NAME)]
NamespaceName = Annotated[str, Field(min_length=1, max_length=63, pattern=_DNS_LABEL)]


# ---------------------------------------------------------------- spec


class _Model(BaseModel):
    model_config = ConfigDict(
        alias_generator=to_camel,
        populate_by_name=True,
        extra="forbid",
        frozen=True,
        strict=True,  # as the API server: "false" is no boolean
        hide_input_in_errors=True,
        use_attribute_docstrings=True,
    )


class SecretRef(_Model):
    """A Secret in the Application's namespace."""

    name: DnsName
    """Name of the Secret."""


class Ref(_Model):
    """What to follow in the repository: at most one of branch, tag, semver and commit."""

    model_config = ConfigDict(
        json_schema_extra=_rule(
            "[has(self.branch), has(self.tag), has(self.semver), has(self.commit)].filter(given, given).size() <= 1",
            "at most one of branch, tag, semver and commit may be given",
        )
    )

    branch: Annotated[str, Field(min_length=1, max_length=255)] | None = None
    """Branch whose newest commit is deployed. The default, when nothing is given, is main."""
    tag: Annotated[str, Field(min_length=1, max_length=255)] | None = None
    """Tag to deploy, for example v1.4.2."""
    semver: Annotated[str, Field(min_length=1, max_length=255)] | None = None
    """Range of versions, for example ">=1.4.0 <2.0.0": the highest tag in it is deployed."""
    commit: Annotated[str, Field(pattern=r"^[0-9a-f]{40}([0-9a-f]{24})?$")] | None = None
    """Full id of the one commit to deploy."""

    @model_validator(mode="after")
    def _at_most_one(self) -> Self:
        given = [name for name in ("branch", "tag", "semver", "commit") if getattr(self, name) is not None]
        if len(given) > 1:
            raise ValueError(f"at most one of branch, tag, semver and commit may be given, not {' and '.join(given)}")
        for name in ("branch", "tag"):
            value = cast("str | None", getattr(self, name))
            if value is not None and not _is_ref_name(value):
                raise ValueError(f"{name} is not a name that git allows")
        return self

    @property
    def kind(self) -> Literal["branch", "tag", "semver", "commit"]:
        return "tag" if self.tag else "semver" if self.semver else "commit" if self.commit else "branch"

    @property
    def value(self) -> str:
        return self.tag or self.semver or self.commit or self.branch or DEFAULT_BRANCH


def _is_ref_name(name: str) -> bool:
    """The rules of ``git check-ref-format --branch``, and no leading dash."""
    if name.startswith(("-", "/", ".")) or name.endswith(("/", ".", ".lock")) or name == "@":
        return False
    return not re.search(r"[\x00-\x20\x7f~^:?*\[\\]|\.\.|@\{|//|/\.|\.lock/", name)


class Source(_Model):
    """Where the manifests and Dockerfiles are."""

    repository: Annotated[str, AfterValidator(check_repository_url), Field(min_length=1, max_length=2048)] = Field(
        json_schema_extra={
            "x-kubernetes-validations": [
                {
                    "rule": "!self.matches('^[a-z]+://[^/]*@') || self.matches('^ssh://[^/:@]*@')",
                    "message": "must not carry credentials: put them into a Secret and name it in source.secretRef",
                },
                {
                    "rule": "!self.matches('^[^/@:]+:[^/@][^@]*@')",
                    "message": "must not carry credentials: put them into a Secret and name it in source.secretRef",
                },
                {
                    "rule": "!(self.matches('^[a-z]+://') && self.matches('[?#]'))",
                    "message": "must not have a query or a fragment",
                },
                {
                    "rule": "self.matches('^(https?|ssh|git|file)://')"
                    " || self.matches('^([A-Za-z0-9._-]+@)?[A-Za-z0-9][A-Za-z0-9.-]*:[^/:]')",
                    "message": "must be an https:// or ssh:// URL, or user@host:path",
                },
            ]
        }
    )
    """URL of the git repository: https://host/path, ssh://user@host/path or user@host:path. Never with credentials."""
    ref: Ref = Ref()
    """What to follow: a branch (main if nothing is given), a tag, a range of versions or one commit."""
    path: RepositoryPath = ""
    """Directory of the manifests, from the root of the repository. Default: manifests, deploy or k8s, whichever
    exists first in this order. "." is the root."""
    secret_ref: SecretRef | None = None
    """Secret with the credentials, by these keys: username and password, bearerToken, or identity and known_hosts."""
    interval: Duration | None = None
    """How often to look for new commits when no webhook announces them. Default: the service's own, one minute."""


class ImageEntry(_Model):
    """One image that this repository builds."""

    model_config = ConfigDict(
        json_schema_extra=_rule("has(self.context) || has(self.dockerfile)", "needs a context or a dockerfile")
    )

    name: Annotated[str, Field(min_length=1, max_length=255, pattern=_IMAGE_NAME)]
    """The image as manifests write it, without tag or digest, for example kubetm/hello."""
    repository: Annotated[str, Field(max_length=255, pattern=_REPOSITORY)] | None = None
    """Where to push it, without tag. Default: below registry.repository."""
    context: RepositoryPath = ""
    """Directory sent to the build, from the root of the repository. Default: the directory of the Dockerfile."""
    dockerfile: RepositoryPath = ""
    """Path of the Dockerfile from the root of the repository. Default: Dockerfile in the context."""
    target: Annotated[str, Field(max_length=128)] = ""
    """Stage of the Dockerfile to build. Default: the last one."""
    args: Annotated[dict[str, str], Field(max_length=64)] = {}
    """Build arguments. They end up in the image's history: never put a secret here."""
    platforms: Annotated[
        list[Annotated[str, Field(pattern=r"^[a-z0-9]+/[a-z0-9]+(/[a-z0-9]+)?$")]], Field(max_length=16)
    ] = []
    """Platforms to build for, for example linux/amd64. Default: the builder's own."""

    @model_validator(mode="after")
    def _says_where(self) -> Self:
        if not self.context and not self.dockerfile:
            raise ValueError("needs a context or a dockerfile")
        return self


class Registry(_Model):
    """Where built images go. What is not given here comes from the service's own settings."""

    repository: Annotated[str, Field(max_length=255, pattern=_REPOSITORY)] | None = None
    """Prefix of the names that gitsync pushes to, for example registry.example.com/team."""
    pull_repository: Annotated[str, Field(max_length=255, pattern=_REPOSITORY)] | None = None
    """Prefix of the same images as nodes pull them, where it differs (inside and outside a cluster).
    Default: repository."""
    secret_ref: SecretRef | None = None
    """Secret of type kubernetes.io/dockerconfigjson with the login to push. Pods need one of their own to pull."""


class Dependency(_Model):
    """An Application that must be healthy first."""

    name: DnsName
    """Name of the other Application."""
    namespace: NamespaceName | None = None
    """Its namespace. Default: this Application's."""


class Sync(_Model):
    """How a revision is brought to the cluster, and how the cluster is kept equal to it."""

    prune: bool = True
    """Delete what this Application created and git no longer has. Deleting much always waits for approval."""
    suspend: bool = False
    """Do nothing until this is false again. What runs goes on running."""
    service_account_name: DnsName | None = None
    """ServiceAccount in the Application's namespace whose rights apply the objects. Default: the service's setting."""
    target_namespace: NamespaceName | None = None
    """Namespace of the objects that name none. Default: this Application's."""
    depends_on: Annotated[list[Dependency], Field(max_length=64)] = []
    """Applications that must be synced and healthy before this one is applied."""
    deletion_policy: Literal["orphan", "delete"] = "orphan"
    """What happens to the objects when the Application is deleted: orphan leaves them running, delete removes them."""
    self_heal: Annotated[Literal["repair", "detect", "off"], BeforeValidator(_no_yaml_boolean)] = "repair"
    """What happens when somebody changes a field that git sets: repair it at once, detect and report it, or nothing
    ("off", in quotes)."""
    accept_interruption: bool = False
    """Allow changes that cannot be made without an interruption, such as replacing a bare Pod."""
    timeout: Duration = _default("5m")
    """How long a rollout may go without progress before the last good state is restored."""


class ApplicationSpec(_Model):
    """What to follow, what to build and how to deploy it."""

    source: Source
    """The git repository and what to follow in it."""
    images: Annotated[list[ImageEntry], Field(max_length=256)] = Field(
        default=[], json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["name"]}
    )
    """Images that this repository builds. Not needed for a Dockerfile whose directory has the image's name."""
    registry: Registry = Registry()
    """Where built images are pushed to and pulled from."""
    sync: Sync = Sync()
    """How the cluster is made, and kept, equal to git."""
    zero_downtime: Annotated[Literal["enforce", "warn", "off"], BeforeValidator(_no_yaml_boolean)] = "warn"
    """What to do about a manifest that cannot be rolled out without losing requests: enforce refuses the revision,
    warn names the field and the reason, "off" (in quotes) does not look."""

    @model_validator(mode="after")
    def _no_duplicates(self) -> Self:
        _unique("image", (image.name for image in self.images))
        return self


@dataclass(frozen=True, slots=True, kw_only=True)
class Application:
    """One Application as read from the cluster. ``status`` is as found there: a view, never an input to a decision."""

    name: str
    namespace: str
    uid: str = ""
    generation: int = 0
    spec: ApplicationSpec
    annotations: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    status: Json = field(default_factory=dict[str, Any])
    finalizers: tuple[str, ...] = ()
    deleting: bool = False  # metadata.deletionTimestamp is set

    @property
    def key(self) -> str:
        return f"{self.namespace}/{self.name}"

    @property
    def ref(self) -> ObjectRef:
        return ObjectRef(group=API_GROUP, version=VERSION, kind=KIND, namespace=self.namespace, name=self.name)

    @property
    def target_namespace(self) -> str:
        """Where objects go that name no namespace."""
        return self.spec.sync.target_namespace or self.namespace

    @classmethod
    def parse(cls, obj: Json) -> Application:
        """From the object as the API server or a file has it. Raises ``Invalid`` that lists every error with its path.

        No value of the object is in the error: a mistyped URL may hold a password.
        """
        problems: list[str] = []
        given = (obj.get("apiVersion"), obj.get("kind"))
        if given != (API_VERSION, KIND):
            problems.append(f"must be a {KIND} of {API_VERSION}")
        metadata: Json = _mapping(obj.get("metadata"))
        name, namespace = str(metadata.get("name") or ""), str(metadata.get("namespace") or "")
        if not re.fullmatch(_DNS_NAME, name) or len(name) > MAX_NAME:
            problems.append(f"metadata.name: must be a DNS name of at most {MAX_NAME} characters")
        if not re.fullmatch(_DNS_LABEL, namespace):
            problems.append("metadata.namespace: must be given" if not namespace else "metadata.namespace: is no name")
        spec: ApplicationSpec | None = None
        try:
            spec = ApplicationSpec.model_validate(obj.get("spec", {}), by_alias=True, by_name=False)
        except ValidationError as error:
            problems += explain(error, schema=spec_schema(), root="spec")
        if problems or spec is None:
            raise Invalid(
                "; ".join(problems),
                doing="reading",
                ref=ObjectRef(group=API_GROUP, version=VERSION, kind=KIND, namespace=namespace, name=name),
                hint=f"kubectl explain {KIND.lower()}.spec tells what may stand there",
                reason="InvalidSpec",
            )
        return cls(
            name=name,
            namespace=namespace,
            uid=str(metadata.get("uid") or ""),
            generation=int(metadata.get("generation") or 0),
            spec=spec,
            annotations=MappingProxyType(dict(_mapping(metadata.get("annotations")))),
            status=_mapping(obj.get("status")),
            finalizers=tuple(str(item) for item in metadata.get("finalizers") or ()),
            deleting=bool(metadata.get("deletionTimestamp")),
        )


def _mapping(value: object) -> Json:
    return cast("Json", value) if isinstance(value, dict) else {}


def manifest(name: str, namespace: str, spec: ApplicationSpec) -> Json:
    """The object to send for a spec; fields that have their default value are left out."""
    return {
        "apiVersion": API_VERSION,
        "kind": KIND,
        "metadata": {"name": name, "namespace": namespace},
        "spec": spec.model_dump(mode="json", by_alias=True, exclude_defaults=True),
    }


# ---------------------------------------------------------------- errors, all of them, each with its path


def explain(error: ValidationError, *, schema: Json, root: str = "") -> list[str]:
    """One line per error: ``spec.sync.prun: is not a field; did you mean prune?``. Values are never repeated.

    ``schema`` is the JSON schema of what was validated (without ``$ref``): the hints come from it.
    """
    lines: list[str] = []
    for item in error.errors(include_url=False, include_context=False, include_input=False):
        path = root
        for part in item["loc"]:
            path += f"[{part}]" if isinstance(part, int) else f".{part}" if path else str(part)
        message = item["msg"].removeprefix("Value error, ")
        if item["type"] == "extra_forbidden":
            message = "is not a field" + _did_you_mean(item["loc"], schema)
        elif item["type"] == "missing":
            message = "must be given"
        lines.append(f"{path}: {message[:1].lower()}{message[1:]}")
    return lines


def _did_you_mean(location: Sequence[int | str], schema: Json) -> str:
    for part in location[:-1]:
        schema = schema.get("items", {}) if isinstance(part, int) else schema.get("properties", {}).get(part, {})
    known = sorted(schema.get("properties", {}))
    close = difflib.get_close_matches(str(location[-1]), known, n=1, cutoff=0.6)
    if close:
        return f"; did you mean {close[0]}?"
    return f"; known are {', '.join(known)}" if known else ""


# ---------------------------------------------------------------- status


class Condition(TypedDict):
    """One of Ready, Reconciling and Stalled."""

    type: Annotated[str, Field(description="Ready, Reconciling or Stalled.", max_length=316)]
    status: Annotated[Literal["True", "False", "Unknown"], Field(description="Whether the condition holds.")]
    observedGeneration: Annotated[int, Field(description="Generation of the spec that this speaks of.", ge=0)]
    lastTransitionTime: Annotated[
        str, Field(description="When the status last changed.", json_schema_extra={"format": "date-time"})
    ]
    reason: Annotated[str, Field(description="Why, in one CamelCase word.", max_length=1024)]
    message: Annotated[str, Field(description="Why, for people.", max_length=32768)]


class Quarantined(TypedDict):
    """A revision that is not applied again."""

    revision: Annotated[str, Field(description="The revision.")]
    digest: Annotated[str, Field(description="Digest of its objects as they would have been applied.")]
    stage: Annotated[str, Field(description="Stage at which it failed.")]
    reason: Annotated[str, Field(description="Why, in one CamelCase word.")]
    message: Annotated[str, Field(description="The evidence against it.")]
    at: Annotated[str, Field(description="When it was quarantined.", json_schema_extra={"format": "date-time"})]


class ImageStatus(TypedDict):
    """An image that this Application built or found."""

    name: Annotated[str, Field(description="The image as manifests write it.")]
    reference: Annotated[str, Field(description="What pods pull, with its digest.")]
    fingerprint: Annotated[str, Field(description="Identity of the build's inputs.")]


class Counts(TypedDict):
    """Numbers of objects."""

    objects: Annotated[int, Field(description="Objects that the revision wants.", ge=0)]
    outOfSync: Annotated[int, Field(description="Objects that differ from git.", ge=0)]
    unhealthy: Annotated[int, Field(description="Objects that are not healthy.", ge=0)]
    held: Annotated[int, Field(description="Objects whose deletion waits for approval.", ge=0)]


class FindingStatus(TypedDict):
    """A manifest that cannot be rolled out without losing requests."""

    rule: Annotated[str, Field(description="Name of the rule.")]
    level: Annotated[str, Field(description="error or warning.")]
    object: Annotated[str, Field(description="The object, as Kind/namespace/name.")]
    message: Annotated[str, Field(description="Where, which field, and what to do.")]


class LastAttempt(TypedDict, total=False):
    """The latest attempt to deploy something."""

    revision: Annotated[str, Field(description="The revision that was tried.")]
    stage: Annotated[
        str,
        Field(description="Where it is or ended: source, render, images, plan, record, rollout, prune or restore."),
    ]
    reason: Annotated[str, Field(description="Why it ended there, in one CamelCase word.")]
    message: Annotated[str, Field(description="What happened, to which object, and what to do.")]
    at: Annotated[str, Field(description="When it began.", json_schema_extra={"format": "date-time"})]
    seconds: Annotated[float, Field(description="How long it took.", ge=0)]
    lowestReadyPercent: Annotated[
        int, Field(description="The lowest share of ready endpoints during the rollout.", ge=0)
    ]


class ApplicationStatus(TypedDict, total=False):
    """What gitsync last saw. Only a view: gitsync never decides from it."""

    observedGeneration: Annotated[int, Field(description="Generation of the spec that this speaks of.", ge=0)]
    conditions: Annotated[
        list[Condition],
        Field(
            description="Ready, Reconciling and Stalled.",
            json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["type"]},
        ),
    ]
    sync: Annotated[Literal["Synced", "OutOfSync", "Unknown"], Field(description="Whether the cluster equals git.")]
    health: Annotated[
        Literal["Healthy", "Progressing", "Degraded", "Suspended", "Missing", "Unknown"],
        Field(description="Health of all objects taken together."),
    ]
    revision: Annotated[str, Field(description="Revision that is live, for example main@sha1:<commit>.")]
    lastGood: Annotated[str, Field(description="Last revision that was healthy; what a bad one is replaced with.")]
    quarantined: Annotated[list[Quarantined], Field(description="Latest revisions that are not applied again.")]
    images: Annotated[list[ImageStatus], Field(description="Images of the live revision.")]
    counts: Annotated[Counts, Field(description="Numbers of objects.")]
    findings: Annotated[list[FindingStatus], Field(description="What keeps the revision from rolling without loss.")]
    lastAttempt: Annotated[LastAttempt, Field(description="The latest attempt to deploy something.")]
    lastHandledReconcileAt: Annotated[
        str, Field(description="Value of the requestedAt annotation that was last acted on.")
    ]


# ---------------------------------------------------------------- the CRD, derived from the models above


def spec_schema() -> Json:
    """JSON schema of the spec without ``$ref``, as a structural schema allows it."""
    return _structural(ApplicationSpec.model_json_schema(by_alias=True))


def crd() -> Json:
    """The CustomResourceDefinition, ready to be applied."""
    schema: Json = {
        "type": "object",
        "description": "An Application follows a git repository: its images are built, its manifests are applied, "
        "and the cluster is kept equal to it.",
        "required": ["spec"],
        "properties": {
            "apiVersion": {"type": "string", "description": "Version of the schema of this object."},
            "kind": {"type": "string", "description": "Kind of this object."},
            "metadata": {"type": "object"},
            "spec": spec_schema(),
            "status": _structural(TypeAdapter(ApplicationStatus).json_schema()),
        },
        "x-kubernetes-validations": [
            {
                "rule": f"size(self.metadata.name) <= {MAX_NAME}",
                "message": f"the name must have at most {MAX_NAME} characters: it becomes a label's value",
            }
        ],
    }
    ready = '.status.conditions[?(@.type=="Ready")]'
    columns = [
        ("Sync", "string", ".status.sync", 0),
        ("Health", "string", ".status.health", 0),
        ("Revision", "string", ".status.revision", 0),
        ("Ready", "string", f"{ready}.status", 0),
        ("Message", "string", f"{ready}.message", 1),
        ("Repository", "string", ".spec.source.repository", 1),
        ("Age", "date", ".metadata.creationTimestamp", 0),
    ]
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"{PLURAL}.{API_GROUP}"},
        "spec": {
            "group": API_GROUP,
            "scope": "Namespaced",
            "names": {
                "kind": KIND,
                "listKind": f"{KIND}List",
                "plural": PLURAL,
                "singular": KIND.lower(),
                "shortNames": ["app"],
                "categories": ["gitsync"],
            },
            "versions": [
                {
                    "name": VERSION,
                    "served": True,
                    "storage": True,
                    "schema": {"openAPIV3Schema": schema},
                    "subresources": {"status": {}},
                    "additionalPrinterColumns": [
                        {"name": name, "type": kind, "jsonPath": path} | ({"priority": level} if level else {})
                        for name, kind, path, level in columns
                    ],
                }
            ],
        },
    }


def crd_yaml() -> str:
    """``crd()`` as the text of deploy/crd.yaml."""

    class Dumper(yaml.SafeDumper):
        def ignore_aliases(self, data: object) -> bool:
            return True

    head = "# Generated from gitsync/application.py by gitsync.application.crd_yaml(): change the models there.\n"
    return head + yaml.dump(crd(), Dumper=Dumper, sort_keys=False, allow_unicode=True, width=120)


_KEPT = (
    "type", "description", "default", "enum", "pattern", "format", "minimum", "maximum", "minLength", "maxLength",
    "minItems", "maxItems", "maxProperties", "required", "properties", "items", "additionalProperties",
    "x-kubernetes-list-type", "x-kubernetes-list-map-keys", "x-kubernetes-validations",
)  # fmt: skip


def _structural(schema: Json) -> Json:
    """Pydantic's JSON schema → what a CRD allows: no ``$ref``, no ``title``, no ``anyOf`` with null."""
    definitions: Json = schema.get("$defs", {})

    def walk(node: Json) -> Json:
        for choice in node.get("anyOf", ()):
            if choice != {"type": "null"}:
                return walk(choice | {key: value for key, value in node.items() if key not in ("anyOf", "default")})
        if "$ref" in node:
            # what stands beside the reference (the field's own description) is closer than what it refers to
            target = cast("Json", definitions[str(node["$ref"]).rsplit("/", 1)[-1]])
            return walk(target | {key: value for key, value in node.items() if key not in ("$ref", "default")})
        out: Json = {}
        for key in _KEPT:  # in this order: type and description first
            value = node.get(key)
            if value is None or (key == "default" and value in ("", [], {})):
                continue  # an empty default would be written into every object and says nothing
            if key == "properties":
                value = {name: walk(child) for name, child in value.items()}
            elif key in ("items", "additionalProperties"):
                if value is False:
                    continue  # the API server rejects or prunes unknown fields by itself
                value = walk(value)
            elif key == "description":
                value = " ".join(value.split())
            out[key] = value
        return out

    return walk(schema)
