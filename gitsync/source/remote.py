"""What may be contacted, as whom, and what git's answer means. Pure: it opens no file and starts no process.

Rules (each has a test):
- https and ssh only; plain http, git://, file:// and local paths by an explicit flag. git itself is told the one
  scheme of the URL in ``GIT_ALLOW_PROTOCOL``, which no configuration of a repository can widen.
- Credentials never stand in a URL or an argv: a password or token travels in the child's environment as a header bound
  to the URL's origin, a key as a file in a private directory. Nothing is taken from the machine's own configuration.
- No redirect is followed.
"""

import base64
import difflib
import re
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import quote, urlsplit

from gitsync.errors import GitsyncError, Invalid, Refused, Transient, Waiting
from gitsync.source.tree import printable
from gitsync.source.versions import parse_range

SHA = re.compile(r"[0-9a-f]{40}")

_HOST = re.compile(r"(?:[A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?\.?|\[[0-9A-Fa-f:.]+\])")
_SCP = re.compile(r"(?P<user>[A-Za-z0-9_][A-Za-z0-9_.+-]*)@(?P<host>[^:/@\s]+|\[[0-9A-Fa-f:]+\]):(?P<path>[^-:\s]\S*)")
_HELPER = re.compile(r"[A-Za-z0-9+.-]+::")
_USER = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.+-]*")
_SECURE = ("https", "ssh")
_BY_FLAG = ("http", "git", "file")
_BAD_IN_REF = re.compile(r"[\x00-\x20\x7f~^:?*\[\\]|\.\.|@\{|//|/\.|\.lock(?:/|$)|\.$|/$|^[./-]|^@$")
_NAMES = re.compile(r"(?<=')[^' ]+(?=')|\b[a-z]+://[^\s']+")  # in git's words; a repository may be called anything
_MESSAGE = 600  # characters of git's own words that an error carries


@dataclass(frozen=True, slots=True, kw_only=True)
class GitPolicy:
    """What one process allows. Times in seconds, sizes in bytes."""

    allow_insecure_transports: bool = False  # http, git://, file://, local paths; ssh without known_hosts
    ambient_ssh: bool = False  # the user's own ssh keys, agent and known_hosts; for a person's command line
    fetch_timeout: float = 120.0
    poll_timeout: float = 30.0
    low_speed_seconds: int = 20  # of less than 1,000 bytes a second, then the transfer is given up
    max_bytes: int = 2 << 30  # growth of a mirror by one fetch
    max_files: int = 200_000  # in one commit
    max_blob: int = 256 << 20  # one file that is read or exported
    max_export: int = 1 << 30  # one exported directory


@dataclass(frozen=True, slots=True)
class GitCredentials:
    """What a Secret offers; "" where it does not. Values never print."""

    username: str = field(default="", repr=False)
    password: str = field(default="", repr=False)
    bearer_token: str = field(default="", repr=False)
    identity: str = field(default="", repr=False)  # an ssh private key
    known_hosts: str = field(default="", repr=False)
    ca_file: str = field(default="", repr=False)  # PEM

    @classmethod
    def from_secret(cls, data: Mapping[str, bytes]) -> "GitCredentials":
        """From a Secret's decoded data with Flux's keys. ``Invalid`` when nothing in it helps."""

        def text(*keys: str) -> str:
            for key in keys:
                if key in data:
                    try:
                        return data[key].decode().replace("\r\n", "\n").strip("\n")
                    except UnicodeDecodeError as error:
                        raise Invalid(f"{key} is not UTF-8 text", doing="reading a git Secret") from error
            return ""

        def line(key: str) -> str:
            value = text(key)
            if any(ord(c) < 0x20 or ord(c) == 0x7F for c in value):  # it goes into a header
                raise Invalid(f"{key} holds a line break or control character", doing="reading a git Secret")
            return value

        def lines(*keys: str) -> str:
            value = text(*keys)
            return f"{value}\n" if value else ""  # OpenSSH wants the last line break

        found = cls(
            username=line("username"),
            password=line("password"),
            bearer_token=line("bearerToken"),
            identity=lines("identity"),
            known_hosts=lines("known_hosts"),
            ca_file=lines("caFile", "ca.crt"),
        )
        if not (found.password or found.bearer_token or found.identity or found.ca_file):
            raise Invalid(
                f"none of its keys ({', '.join(sorted(map(printable, data))) or 'it is empty'}) is a git credential",
                doing="reading a git Secret",
                hint="give username and password, bearerToken, or identity and known_hosts; caFile for a private CA",
            )
        return found

    @property
    def secrets(self) -> tuple[str, ...]:
        """Every form in which a value could come back in a message, the longest first."""
        values = [v for v in (self.password, self.bearer_token) if v]
        values += [quote(v, safe="") for v in values] + ([_basic(self)] if self.password else [])
        values += [line for line in self.identity.splitlines() if line and not line.startswith("-----")]
        return tuple(sorted(set(values), key=len, reverse=True))


@dataclass(frozen=True, slots=True)
class Ref:
    """What is followed: exactly one of a branch, a tag, a semver range of tags, a commit. Nothing: branch ``main``."""

    branch: str = ""
    tag: str = ""
    semver: str = ""
    commit: str = ""

    def __post_init__(self) -> None:
        given = [name for name in ("branch", "tag", "semver", "commit") if getattr(self, name)]
        if len(given) > 1:
            raise Invalid(f"only one of {' and '.join(given)} can be followed", doing="reading a git ref")
        if not given:
            object.__setattr__(self, "branch", "main")
        name = self.branch or self.tag
        if name and (_BAD_IN_REF.search(name) or len(name) > 255):
            raise Invalid(f"{printable(name)} is not a name that git allows for a ref", doing="reading a git ref")
        if self.commit and not SHA.fullmatch(self.commit):
            raise Invalid(
                f"{printable(self.commit)} is not a whole commit id",
                doing="reading a git ref",
                hint="give all 40 lowercase hexadecimal digits",
            )
        if self.semver:
            try:
                parse_range(self.semver)
            except ValueError as error:
                raise Invalid(
                    f"{printable(self.semver)} is not a semver range: {error}",
                    doing="reading a git ref",
                    hint="write for example 1.2.x, ^1.2 or >=1.2.0 <2.0.0",
                ) from error

    def __str__(self) -> str:
        for kind in ("branch", "tag", "semver", "commit"):
            if value := getattr(self, kind):
                return f"{kind} {value}"
        raise AssertionError("a Ref names something")


@dataclass(frozen=True, slots=True)
class Location:
    """A repository's URL that may be contacted. It holds no credential."""

    url: str
    scheme: str  # https | ssh | http | git | file
    origin: str = ""  # scheme://host[:port] for http and https

    def __str__(self) -> str:
        return self.url


def locate(url: str, policy: GitPolicy) -> Location:
    """Check a repository's URL. ``Invalid`` if it cannot be one, ``Refused`` if the policy says no; neither echoes a
    credential."""
    doing = "reading a repository URL"
    if not url or url != url.strip() or len(url) > 2048 or any(c.isspace() or not c.isprintable() for c in url):
        raise Invalid("it is empty, too long or holds white space or control characters", doing=doing)
    if url.startswith("-"):
        raise Invalid(f"{_bare(url)} begins with a dash", doing=doing)
    if match := _HELPER.match(url):
        raise Refused(f"{match[0]} runs a helper program: that is never allowed", doing=doing)
    if match := _SCP.fullmatch(url):
        _check_host(match["host"], doing)
        return Location(url=url, scheme="ssh")
    if url.startswith("/"):
        _by_flag("a local path", policy, doing)
        return Location(url=url, scheme="file")
    if "://" not in url:
        raise Invalid(
            f"{_bare(url)} is not a repository URL", doing=doing, hint="write https://…, ssh://… or git@host:path"
        )
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        # Not chained and not echoed: what failed to parse may be a password with a slash in it.
        raise Invalid("it is not a URL", doing=doing, hint="write https://… or ssh://…") from None
    scheme = parts.scheme
    if scheme not in (*_SECURE, *_BY_FLAG):
        raise Refused(f"{printable(scheme)}:// is not a transport for git here", doing=doing, hint="use https or ssh")
    if parts.password is not None or (parts.username is not None and scheme != "ssh") or "@" in parts.path:
        raise Invalid(
            f"the URL for {_bare(url)} holds a credential",
            doing=doing,
            hint="put it into a Secret and name that in spec.source.secretRef; change it if the URL was ever stored",
        )
    if parts.query or parts.fragment:
        raise Invalid(f"{_bare(url)} has a query or a fragment", doing=doing, hint="remove what follows the path")
    if scheme in _BY_FLAG:
        _by_flag(f"{scheme}://", policy, doing)
    if scheme == "file":
        if parts.netloc or not parts.path.startswith("/"):
            raise Invalid(f"{_bare(url)} names a host", doing=doing, hint="write file:///path")
        return Location(url=url, scheme=scheme)
    host = parts.netloc.rpartition("@")[2]
    _check_host(host.removesuffix(f":{port}") if port is not None else host, doing)
    if parts.username is not None and not _USER.fullmatch(parts.username):
        raise Invalid("the user name in the URL holds characters that are not allowed", doing=doing)
    if not parts.path.strip("/"):
        raise Invalid(f"{_bare(url)} names a host but no repository", doing=doing)
    return Location(url=url, scheme=scheme, origin=f"{scheme}://{host}")


def environment(
    base: Mapping[str, str],
    location: Location | None,
    credentials: GitCredentials,
    policy: GitPolicy,
    files: Mapping[str, Path],
) -> dict[str, str]:
    """The whole environment of one git process.

    ``base`` is this process's own: only what a transport needs is taken from it. ``files`` names where ``identity``,
    ``known_hosts``, ``ca_file`` and ``ssh_config`` were written. Without a ``location`` git may contact nothing.
    """
    kept = {name: base[name] for name in _KEPT if name in base}
    config = dict(_CONFIG)
    env = {
        **kept,
        "LC_ALL": "C",
        "HOME": "/nonexistent",  # no .netrc, no .config
        "GIT_CONFIG_NOSYSTEM": "1",
        "GIT_CONFIG_GLOBAL": "/dev/null",
        "GIT_TERMINAL_PROMPT": "0",
        "GIT_OPTIONAL_LOCKS": "0",
        "GIT_NO_REPLACE_OBJECTS": "1",
        "GIT_ALLOW_PROTOCOL": location.scheme if location else "none",
    }
    if location and location.scheme == "ssh":
        env["GIT_SSH_VARIANT"] = "ssh"
        # git hands this string to a shell: it holds the path of our own private directory and nothing from outside.
        env["GIT_SSH_COMMAND"] = f"ssh -F {shlex.quote(str(files['ssh_config']))}" if "ssh_config" in files else _SSH
        if policy.ambient_ssh and "ssh_config" not in files:
            env |= {name: base[name] for name in ("HOME", "SSH_AUTH_SOCK") if name in base}
    if location and location.scheme in ("https", "http"):
        config["http.lowSpeedLimit"] = "1000"
        config["http.lowSpeedTime"] = str(policy.low_speed_seconds)
        if "ca_file" in files:
            env["GIT_SSL_CAINFO"] = str(files["ca_file"])  # it would win over http.sslCAInfo
        header = f"Bearer {credentials.bearer_token}" if credentials.bearer_token else ""
        if credentials.password:
            header = f"Basic {_basic(credentials)}"
        if header:
            config[f"http.{location.origin}/.extraHeader"] = f"Authorization: {header}"
    env["GIT_CONFIG_COUNT"] = str(len(config))
    for index, (key, value) in enumerate(config.items()):
        env[f"GIT_CONFIG_KEY_{index}"] = key
        env[f"GIT_CONFIG_VALUE_{index}"] = value
    return env


def ssh_config(location: Location, credentials: GitCredentials, policy: GitPolicy, files: Mapping[str, Path]) -> str:
    """An ssh_config(5) that replaces the machine's; "" when the user's own is to be used.

    ``Invalid`` when the credentials cannot be used for ssh, or the host's key could not be checked.
    """
    if policy.ambient_ssh and not credentials.identity:
        return ""
    if not credentials.identity:
        raise Invalid(
            "an ssh URL needs a private key",
            doing=f"contacting {location}",
            hint="put identity and known_hosts into the Secret of spec.source.secretRef",
        )
    if not credentials.known_hosts and not policy.allow_insecure_transports:
        raise Invalid(
            "without known_hosts the host cannot be told from an impostor",
            doing=f"contacting {location}",
            hint="add known_hosts (the output of ssh-keyscan, compared with what the host publishes) to the Secret",
        )
    known = f'"{files["known_hosts"]}"' if credentials.known_hosts else "/dev/null"
    return "\n".join(
        [
            "Host *",
            f'  IdentityFile "{files["identity"]}"',
            "  IdentitiesOnly yes",
            "  IdentityAgent none",
            f"  UserKnownHostsFile {known}",
            "  GlobalKnownHostsFile /dev/null",
            f"  StrictHostKeyChecking {'yes' if credentials.known_hosts else 'accept-new'}",
            "  UpdateHostKeys no",
            f"  User {credentials.username if _USER.fullmatch(credentials.username) else 'git'}",
            "  BatchMode yes",
            "  ConnectTimeout 15",
            "  ServerAliveInterval 5",
            "  ServerAliveCountMax 4",
            "  ForwardAgent no",
            "  ClearAllForwardings yes",
            "  PermitLocalCommand no",
            "",
        ]
    )


def said(stderr: str, secrets: Sequence[str]) -> str:
    """Git's own words as one printable line without credentials, cut to a readable length."""
    for secret in secrets:
        stderr = stderr.replace(secret, "***")
    stderr = re.sub(r"(?<=://)[^/@\s]+@", "***@", stderr)
    stderr = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", stderr)
    lines = (line.strip() for line in re.split(r"[\r\n]+", stderr))
    kept = [printable(line) for line in lines if line and not line.startswith(("hint:", "Warning: Permanently added"))]
    text = "; ".join(dict.fromkeys(kept)) or "git said nothing"
    return text if len(text) <= _MESSAGE else f"{text[:_MESSAGE]}…"


def failure(words: str, *, doing: str) -> GitsyncError | None:
    """The error that git's words (from ``said``) stand for; ``None`` if they do not speak of the remote."""
    lower = _NAMES.sub("", words.lower())
    for patterns, make in _ANSWERS:
        if any(pattern in lower for pattern in patterns):
            return make(words, doing)
    return None


def out_of_resources(words: str) -> bool:
    """Whether git gave up for want of disk or memory: no evidence against what it read."""
    return any(pattern in words.lower() for pattern in _EXHAUSTED)


def missing(ref: Ref, branches: Sequence[str], tags: Sequence[str], *, doing: str) -> Invalid:
    """The ref is not there: say what is."""
    if not branches and not tags:
        return Invalid("the repository is empty", doing=doing, hint="push a first commit", reason="EmptyRepository")
    if ref.commit:
        message, names, kind = f"the repository does not offer commit {ref.commit}", branches, "branches"
    elif ref.branch:
        message, names, kind = f"there is no branch {ref.branch}", branches, "branches"
    elif ref.tag:
        message, names, kind = f"there is no tag {ref.tag}", tags, "tags"
    else:
        message, names, kind = f"no tag is a version in the range {ref.semver}", tags, "tags"
    wanted = ref.branch or ref.tag
    shown = difflib.get_close_matches(wanted, names, n=5, cutoff=0.3) if wanted else []
    shown += [name for name in reversed(names) if name not in shown][: 5 - len(shown)]
    more = f" and {len(names) - len(shown)} more" if len(names) > len(shown) else ""
    hint = f"{kind} there: {', '.join(map(printable, shown))}{more}" if names else f"it has no {kind}"
    if (ref.branch and ref.branch in tags) or (ref.tag and ref.tag in branches):
        hint = f"{wanted} is a {'tag' if ref.branch else 'branch'} there; {hint}"
    return Invalid(message, doing=doing, hint=hint, reason="RefNotFound")


def _by_flag(what: str, policy: GitPolicy, doing: str) -> None:
    if not policy.allow_insecure_transports:
        raise Refused(
            f"{what} is not allowed: neither side of the transport is proven",
            doing=doing,
            hint="use https or ssh; for a repository of your own machine, --allow-insecure-git",
        )


def _check_host(host: str, doing: str) -> None:
    if not _HOST.fullmatch(host):
        raise Invalid(f"{printable(host) or 'nothing'} is not a host name", doing=doing)


def _bare(url: str) -> str:
    """For messages: without anything that could be a credential."""
    head, separator, rest = url.partition("://")
    if not separator:
        return printable(url.rpartition("@")[2].partition("?")[0])
    authority, slash, path = rest.partition("/")
    path = path.rpartition("@")[2].partition("?")[0].partition("#")[0]
    return printable(f"{head}://{authority.rpartition('@')[2].partition('?')[0]}{slash}{path}")


def _basic(credentials: GitCredentials) -> str:
    # Hosts take a token with any user name; Flux and ours send "git" where none is given.
    return base64.b64encode(f"{credentials.username or 'git'}:{credentials.password}".encode()).decode()


# The environment that a transport needs: where git and its certificates are, and the way out.
_KEPT = (
    "PATH", "TMPDIR", "SSL_CERT_FILE", "SSL_CERT_DIR", "GIT_SSL_CAINFO",
    "http_proxy", "https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY", "no_proxy", "NO_PROXY",
)  # fmt: skip

_SSH = "ssh -o BatchMode=yes -o ControlPath=none -o ConnectTimeout=15 -o ServerAliveInterval=5"

_CONFIG: Mapping[str, str] = {
    "core.hooksPath": "/dev/null",
    "core.askPass": "",
    "core.fsmonitor": "false",
    "core.bigFileThreshold": "16m",  # larger files are streamed, not held in memory
    "credential.helper": "",
    "http.followRedirects": "false",
    "protocol.version": "2",
    "transfer.bundleURI": "false",
    "fetch.recurseSubmodules": "false",
    "submodule.recurse": "false",
    "fetch.unpackLimit": "1",  # every fetch is one pack: it appears whole or not at all
    "fetch.writeCommitGraph": "false",
    "gc.auto": "0",
    "maintenance.auto": "false",
    # A mirror on a volume may belong to another uid after a restart; nothing that we run obeys its configuration.
    "safe.directory": "*",
}


def _authentication(words: str, doing: str) -> GitsyncError:
    return Waiting(
        f"the host refused the credentials: {words}",
        doing=doing,
        retry_after=60,
        reason="AuthenticationFailed",
        hint="check the Secret of spec.source.secretRef: is it named, current, and may it read this repository?",
    )


def _host_key(words: str, doing: str) -> GitsyncError:
    return Waiting(
        f"the host's key is not the known one: {words}",
        doing=doing,
        retry_after=60,
        reason="HostKeyUnknown",
        hint="compare with what the host publishes, then put its line into known_hosts of the Secret",
    )


def _certificate(words: str, doing: str) -> GitsyncError:
    return Waiting(
        f"the host's certificate is not trusted: {words}",
        doing=doing,
        retry_after=60,
        reason="CertificateUntrusted",
        hint="for a private authority put its certificate into caFile of the Secret",
    )


def _redirect(words: str, doing: str) -> GitsyncError:
    return Invalid(
        f"the host redirects, and redirects are not followed: {words}",
        doing=doing,
        reason="Redirected",
        hint="write the URL that the host redirects to (often the same with .git at its end)",
    )


def _no_repository(words: str, doing: str) -> GitsyncError:
    return Invalid(
        f"no such repository: {words}",
        doing=doing,
        reason="RepositoryNotFound",
        hint="check the URL; hosts answer the same when the credentials may not see it",
    )


def _disk(words: str, doing: str) -> GitsyncError:
    return Transient(
        f"this machine cannot store it: {words}",
        doing=doing,
        reason="CacheUnwritable",
        hint="free or enlarge the cache volume",
    )


def _unreachable(words: str, doing: str) -> GitsyncError:
    return Transient(f"git cannot get it from the host: {words}", doing=doing)


_EXHAUSTED = (
    "no space left", "disk quota exceeded", "read-only file system", "too many open files", "out of memory",
    "cannot allocate memory", "unable to create thread",
)  # fmt: skip

# In this order: the first that matches wins. git speaks English here (LC_ALL=C).
_ANSWERS: Sequence[tuple[tuple[str, ...], Callable[[str, str], GitsyncError]]] = (
    (_EXHAUSTED, _disk),
    (("host key verification failed", "remote host identification has changed"), _host_key),
    (
        (
            "authentication failed", "returned error: 401", "returned error: 403", "could not read username",
            "could not read password", "terminal prompts disabled", "permission denied (", "access denied",
        ),
        _authentication,
    ),
    (("certificate",), _certificate),
    (tuple(f"returned error: {code}" for code in (301, 302, 303, 307, 308)), _redirect),
    (("repository not found", "returned error: 404", "returned error: 410"), _no_repository),
    (("does not appear to be a git repository", "' not found", "project you were looking for"), _no_repository),
    (
        (
            "unable to access", "returned error:", "rpc failed", "could not resolve", "connection", "timed out",
            "unable to connect", "network is unreachable", "no route to host", "early eof", "hung up unexpectedly",
            "is this a git repository?", "unexpected disconnect", "could not read from remote repository",
            "operation too slow", "remote error", "protocol error", "expected flush", "bad line length", "ssl",
            "invalid response", "could not fetch",
        ),
        _unreachable,
    ),
)  # fmt: skip
