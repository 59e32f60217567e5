"""What may be contacted, what git is told, and what its answers become."""

import base64
import shutil
import subprocess
from pathlib import Path

import pytest

from gitsync.errors import GitsyncError, Invalid, Refused, Transient, Waiting
from gitsync.source import GitCredentials, GitPolicy, Ref
from gitsync.source.remote import environment, failure, locate, missing, said, ssh_config

STRICT = GitPolicy()
LOOSE = GitPolicy(allow_insecure_transports=True)


@pytest.mark.parametrize(
    ("url", "scheme", "origin"),
    [
        ("https://git.example/team/shop.git", "https", "https://git.example"),
        ("https://git.example:8443/shop", "https", "https://git.example:8443"),
        ("https://[::1]:8443/shop", "https", "https://[::1]:8443"),
        ("ssh://git@git.example/team/shop.git", "ssh", ""),
        ("ssh://git@git.example:2222/~ada/shop", "ssh", ""),
        ("ssh://git.example/shop", "ssh", ""),
        ("git@git.example:team/shop.git", "ssh", ""),
        ("git@[::1]:team/shop.git", "ssh", ""),
    ],
)
def test_https_and_ssh_are_allowed(url: str, scheme: str, origin: str) -> None:
    location = locate(url, STRICT)
    assert location.scheme == scheme
    if origin:
        assert location.origin == origin


@pytest.mark.parametrize(
    "url", ["http://git.example/x", "git://git.example/x", "file:///srv/x.git", "/srv/x.git", "http://127.0.0.1:1/x"]
)
def test_unproven_transports_need_the_flag(url: str) -> None:
    with pytest.raises(Refused, match="not allowed"):
        locate(url, STRICT)
    assert locate(url, LOOSE).url == url


@pytest.mark.parametrize(
    "url",
    [
        "",
        " https://h/x",
        "https://h/x\n",
        "https://h/a b",
        "https://h/\x00",
        "--upload-pack=touch /tmp/x",
        "-oProxyCommand=x:y",
        "ext::sh -c id",
        "ext::sh",
        "fd::17",
        "transport::https://h/x",
        "ssh://-oProxyCommand=id/x",
        "ssh://git@-oProxyCommand=id/x",
        "ssh://-oProxyCommand=id@h/x",
        "git@-oProxyCommand=id:x",
        "-git@h:x",
        "git@h:-x",
        "javascript:alert(1)",
        "ftp://h/x",
        "ftps://h/x",
        "rsync://h/x",
        "file://host/x",
        "relative/path",
        "../x",
        "C:\\x",
        "https:///x",
        "https://h",
        "https://h/",
        "https://h:99999/x",
        "https://h:0x/x",
        "https://h/x?ref=main",
        "https://h/x#main",
        "https://h%00/x",
        "https://ho st/x",
        "https://h/" + "x" * 3000,
        "https://\u202eh/x",
    ],
)  # fmt: skip
def test_everything_else_is_refused_even_with_the_flag(url: str) -> None:
    with pytest.raises(Invalid):
        locate(url, LOOSE)


@pytest.mark.parametrize(
    "url",
    [
        "https://ada:hunter2@h/x",
        "https://hunter2@h/x",
        "https://:hunter2@h/x",
        "https://ada:hun/hunter2@h/x",
        "https://ada:12/hunter2@h/x",
        "ssh://ada:hunter2@h/x",
        "ada:hunter2@h:x",
        "https://h/x?private_token=hunter2",
        "https://h/x#hunter2",
        "ftp://ada:hunter2@h/x",
        "-https://ada:hunter2@h/x",
    ],
)
def test_a_credential_in_a_url_is_refused_and_not_echoed(url: str) -> None:
    with pytest.raises(Invalid) as caught:
        locate(url, LOOSE)
    assert "hunter2" not in str(caught.value)
    assert "hun" not in str(caught.value)


# ---------------------------------------------------------------- refs


def test_nothing_follows_main_and_two_things_are_one_too_many() -> None:
    assert str(Ref()) == "branch main"
    with pytest.raises(Invalid, match="branch and tag"):
        Ref(branch="a", tag="b")


@pytest.mark.parametrize(
    "name",
    ["-x", "--upload-pack=id", "a..b", "a b", "a~1", "a^", "a:b", "a?", "a*", "a[", "a\\b", "/a", "a/", "a//b", ".a",
     "a/.b", "a.lock", "a.lock/b", "a.", "@", "a@{1}", "a\nb", "a\x7f", "x" * 300],
)  # fmt: skip
def test_names_that_git_forbids_are_refused(name: str) -> None:
    for kind in ("branch", "tag"):
        with pytest.raises(Invalid, match="name that git allows"):
            Ref(**{kind: name})


@pytest.mark.parametrize("name", ["main", "feature/x-1", "release_1.2", "v1.0.0", "a@b", "ünïcode", "dependabot/npm/x"])
def test_other_names_are_allowed_as_git_allows_them(name: str) -> None:
    subprocess.run(["git", "check-ref-format", f"refs/heads/{name}"], check=True)
    assert Ref(branch=name).branch == name


@pytest.mark.parametrize("commit", ["abc1234", "HEAD", "A" * 40, "g" * 40, "a" * 41, "--all"])
def test_only_a_whole_commit_id_is_a_commit(commit: str) -> None:
    with pytest.raises(Invalid, match="whole commit id"):
        Ref(commit=commit)


def test_a_range_that_cannot_be_read_is_refused() -> None:
    with pytest.raises(Invalid, match=r"not a semver range.*for example"):
        Ref(semver="newest")


def test_a_missing_ref_names_its_neighbours() -> None:
    branches = ["develop", "main", "release/1.0"]
    assert "branches there: main, release/1.0, develop" in str(missing(Ref(branch="mian"), branches, [], doing="x"))
    assert "v1 is a tag there" in str(missing(Ref(branch="v1"), branches, ["v1"], doing="x"))
    assert "it has no tags" in str(missing(Ref(semver="1.x"), branches, [], doing="x"))
    many = [f"v1.{n}.0" for n in range(20)]
    assert "v1.19.0, v1.18.0, v1.17.0, v1.16.0, v1.15.0 and 15 more" in str(
        missing(Ref(semver="2.x"), [], many, doing="x")
    )
    assert "the repository is empty" in str(missing(Ref(), [], [], doing="x"))


# ---------------------------------------------------------------- credentials


def test_flux_keys_are_read() -> None:
    found = GitCredentials.from_secret(
        {
            "username": b"ada",
            "password": b"hunter2\n",
            "identity": b"-----BEGIN\r\nkey\r\n-----END",
            "known_hosts": b"h ssh-ed25519 AAAA",
            "bearerToken": b"token",
            "ca.crt": b"PEM",
        }
    )
    assert (found.username, found.password, found.bearer_token) == ("ada", "hunter2", "token")
    assert found.identity == "-----BEGIN\nkey\n-----END\n"
    assert found.known_hosts == "h ssh-ed25519 AAAA\n"
    assert found.ca_file == "PEM\n"
    assert GitCredentials.from_secret({"caFile": b"PEM"}).ca_file == "PEM\n"


def test_every_form_of_a_secret_is_known() -> None:
    key = "-----BEGIN OPENSSH PRIVATE KEY-----\nb3BlbnNzaC1rZXk\n-----END OPENSSH PRIVATE KEY-----\n"
    known = GitCredentials(username="u", password="p/w", bearer_token="t+k", identity=key).secrets
    assert set(known) == {"p/w", "p%2Fw", "t+k", "t%2Bk", "b3BlbnNzaC1rZXk", base64.b64encode(b"u:p/w").decode()}


def test_values_never_print() -> None:
    credentials = GitCredentials("ada", "hunter2", "token", "identity", "known", "ca")
    assert repr(credentials) == str(credentials) == "GitCredentials()"


@pytest.mark.parametrize(
    "data",
    [
        {},
        {"token": b"hunter2"},
        {"username": b"ada"},
        {"known_hosts": b"h ssh-ed25519 AAAA"},
        {"password": b""},
        {"password": b"\xff"},
        {"password": b"hunter2\r\nX-Evil: 1"},
        {"bearerToken": b"hunter2\x00"},
    ],
)
def test_a_useless_or_dangerous_secret_is_refused_without_its_values(data: dict[str, bytes]) -> None:
    with pytest.raises(Invalid) as caught:
        GitCredentials.from_secret(data)
    assert "hunter2" not in str(caught.value)


# ---------------------------------------------------------------- what git is told


def told(env: dict[str, str]) -> dict[str, str]:
    count = int(env["GIT_CONFIG_COUNT"])
    return {env[f"GIT_CONFIG_KEY_{n}"]: env[f"GIT_CONFIG_VALUE_{n}"] for n in range(count)}


def test_git_gets_nothing_of_the_machine() -> None:
    base = {
        "PATH": "/bin", "HOME": "/home/ada", "GIT_DIR": "/x", "GIT_CONFIG_COUNT": "9", "GIT_TRACE": "1",
        "GIT_ASKPASS": "/x", "SSH_ASKPASS": "/x", "SSH_AUTH_SOCK": "/x", "GIT_SSH_COMMAND": "x", "LD_PRELOAD": "/x",
        "XDG_CONFIG_HOME": "/x", "https_proxy": "http://proxy",
    }  # fmt: skip
    env = environment(base, locate("https://h/x", STRICT), GitCredentials(), STRICT, {})
    kept = {name: value for name, value in env.items() if not name.startswith("GIT_CONFIG_")}
    assert kept == {
        "PATH": "/bin", "https_proxy": "http://proxy", "HOME": "/nonexistent", "LC_ALL": "C",
        "GIT_TERMINAL_PROMPT": "0", "GIT_OPTIONAL_LOCKS": "0", "GIT_NO_REPLACE_OBJECTS": "1",
        "GIT_ALLOW_PROTOCOL": "https",
    }  # fmt: skip
    assert env["GIT_CONFIG_GLOBAL"] == "/dev/null"
    assert env["GIT_CONFIG_NOSYSTEM"] == "1"
    config = told(env)
    assert config["core.hooksPath"] == "/dev/null"
    assert config["http.followRedirects"] == "false"
    assert config["transfer.bundleURI"] == "false"
    assert config["fetch.recurseSubmodules"] == "false"
    assert config["http.lowSpeedTime"] == "20"
    assert "extraHeader" not in str(config)


def test_a_password_becomes_a_header_for_its_origin_only() -> None:
    location = locate("https://h:8443/x", STRICT)
    config = told(environment({}, location, GitCredentials(password="hunter2"), STRICT, {}))
    value = base64.b64encode(b"git:hunter2").decode()
    assert config["http.https://h:8443/.extraHeader"] == f"Authorization: Basic {value}"
    config = told(environment({}, location, GitCredentials(bearer_token="token"), STRICT, {}))
    assert config["http.https://h:8443/.extraHeader"] == "Authorization: Bearer token"


def test_a_ca_of_the_secret_wins_over_the_machine() -> None:
    env = environment(
        {"GIT_SSL_CAINFO": "/etc/ca"},
        locate("https://h/x", STRICT),
        GitCredentials(),
        STRICT,
        {"ca_file": Path("/p/ca")},
    )
    assert env["GIT_SSL_CAINFO"] == "/p/ca"


def test_a_local_git_may_contact_nothing() -> None:
    assert environment({}, None, GitCredentials(), STRICT, {})["GIT_ALLOW_PROTOCOL"] == "none"


def test_ssh_reads_our_configuration_alone_and_no_text_from_outside_reaches_the_command(tmp_path: Path) -> None:
    location = locate("ssh://git@h/$(id)", STRICT)
    files = {"identity": tmp_path / "identity", "known_hosts": tmp_path / "known_hosts", "ssh_config": tmp_path / "a b"}
    credentials = GitCredentials(
        username="ada\n  ProxyCommand id", identity="key\n", known_hosts="h ssh-ed25519 AAAA\n"
    )
    env = environment({"SSH_AUTH_SOCK": "/x", "HOME": "/home/ada"}, location, credentials, STRICT, files)
    assert env["GIT_SSH_COMMAND"] == f"ssh -F '{tmp_path}/a b'"
    assert "SSH_AUTH_SOCK" not in env
    text = ssh_config(location, credentials, STRICT, files)
    assert "ProxyCommand" not in text
    files["ssh_config"].write_text(text)
    # What the real client makes of it:
    assert shutil.which("ssh"), "the OpenSSH client is needed"
    shown = subprocess.run(
        ["ssh", "-G", "-F", str(files["ssh_config"]), "h"], check=True, capture_output=True, text=True
    )
    options = dict(line.split(" ", 1) for line in shown.stdout.splitlines() if " " in line)
    assert options["user"] == "git"
    assert options["stricthostkeychecking"] in ("true", "yes")
    assert options["batchmode"] == "yes"
    assert options["identitiesonly"] == "yes"
    assert options["identityagent"] == "none"
    assert options["identityfile"] == str(files["identity"])
    assert options["userknownhostsfile"] == str(files["known_hosts"])
    assert options["globalknownhostsfile"] == "/dev/null"
    assert options["forwardagent"] == "no"
    assert options["permitlocalcommand"] == "no"


def test_ssh_needs_a_key_and_a_known_host() -> None:
    location, key = locate("git@h:x", STRICT), {"identity": Path("/p/identity")}
    with pytest.raises(Invalid, match="private key"):
        ssh_config(location, GitCredentials(password="x"), STRICT, {})
    with pytest.raises(Invalid, match="known_hosts"):
        ssh_config(location, GitCredentials(identity="key"), STRICT, key)
    assert "accept-new" in ssh_config(location, GitCredentials(identity="key"), LOOSE, key)


def test_a_persons_own_ssh_is_used_only_when_the_policy_says_so() -> None:
    location, own = locate("git@h:x", STRICT), GitPolicy(ambient_ssh=True)
    assert ssh_config(location, GitCredentials(), own, {}) == ""
    env = environment({"HOME": "/home/ada", "SSH_AUTH_SOCK": "/agent"}, location, GitCredentials(), own, {})
    assert (env["HOME"], env["SSH_AUTH_SOCK"]) == ("/home/ada", "/agent")
    assert "-F" not in env["GIT_SSH_COMMAND"]


# ---------------------------------------------------------------- what git answers


def test_gits_words_are_cleaned_and_redacted() -> None:
    credentials = GitCredentials(username="ada", password="hunter2/x", bearer_token="token!")
    basic = base64.b64encode(b"ada:hunter2/x").decode()
    words = said(
        f"remote: \x1b[31mhunter2/x\x1b[0m hunter2%2Fx {basic} token! https://ada:pw@h/x\r\n"
        "hint: try\nfatal: a\x07b\nfatal: a\x07b\n",
        credentials.secrets,
    )
    assert words == r"remote: *** *** *** *** https://***@h/x; fatal: a\x07b"
    assert len(said("x" * 10_000, ())) < 700
    assert said("", ()) == "git said nothing"


@pytest.mark.parametrize(
    ("words", "kind", "reason"),
    [
        ("fatal: Authentication failed for 'https://h/x/'", Waiting, "AuthenticationFailed"),
        ("fatal: could not read Username for 'https://h': terminal prompts disabled", Waiting, "AuthenticationFailed"),
        (
            "fatal: unable to access 'https://h/x/': The requested URL returned error: 403",
            Waiting,
            "AuthenticationFailed",
        ),
        (
            "git@h: Permission denied (publickey).; fatal: Could not read from remote repository.",
            Waiting,
            "AuthenticationFailed",
        ),
        ("Host key verification failed.; fatal: Could not read from remote repository.", Waiting, "HostKeyUnknown"),
        (
            "fatal: unable to access 'https://h/': server certificate verification failed.",
            Waiting,
            "CertificateUntrusted",
        ),
        ("fatal: unable to access 'https://h/': SSL certificate problem: self signed", Waiting, "CertificateUntrusted"),
        ("fatal: unable to access 'http://h/x/': The requested URL returned error: 302", Invalid, "Redirected"),
        ("fatal: repository 'https://h/x/' not found", Invalid, "RepositoryNotFound"),
        ("ERROR: Repository not found.; fatal: Could not read from remote repository.", Invalid, "RepositoryNotFound"),
        ("fatal: '/x' does not appear to be a git repository", Invalid, "RepositoryNotFound"),
        ("fatal: unable to access 'https://h/x/': The requested URL returned error: 503", Transient, "Unavailable"),
        ("fatal: unable to access 'https://h/x/': Could not resolve host: h", Transient, "Unavailable"),
        ("ssh: connect to host h port 22: Connection refused", Transient, "Unavailable"),
        ("fetch-pack: unexpected disconnect while reading sideband packet; fatal: early EOF", Transient, "Unavailable"),
        ("fatal: write error: No space left on device; fatal: index-pack failed", Transient, "CacheUnwritable"),
        # What a repository is called says nothing.
        ("fatal: unable to access 'https://h/certificates/': Could not resolve host: h", Transient, "Unavailable"),
        ("fatal: unable to access 'https://h/tls/': SSL certificate problem", Waiting, "CertificateUntrusted"),
        ("fatal: repository 'https://h/certificates.git/' not found", Invalid, "RepositoryNotFound"),
        ("fatal: https://h/certificate.git/info/refs not valid: is this a git repository?", Transient, "Unavailable"),
        ("fatal: '/srv/certificates.git' does not appear to be a git repository", Invalid, "RepositoryNotFound"),
    ],
)
def test_what_git_says_decides_wait_retry_or_stop(words: str, kind: type[GitsyncError], reason: str) -> None:
    error = failure(words, doing="fetching")
    assert error is not None
    assert type(error) is kind
    assert error.reason == reason
    assert words in error.message


def test_what_does_not_speak_of_the_remote_is_no_answer() -> None:
    assert failure("error: bad object refs/gitsync/x; fatal: pack has 3 unresolved deltas", doing="") is None
