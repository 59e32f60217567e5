"""``gitsync run REPOSITORY`` from outside the cluster: no Application by hand, with each builder that one may have."""

import contextlib
import json
import os
import secrets
import tempfile
from collections.abc import Generator, Iterator, Mapping
from pathlib import Path

import pytest

from gitsync.images import process
from tests.cluster import Cluster
from tests.cluster.githost import GitHost
from tests.e2e.engines import engine
from tests.e2e.outside import Follower, clone_of_sample, get, pods, prepare_namespace, service_url
from tests.e2e.world import Repository, eventually

pytestmark = pytest.mark.e2e

BUILDERS = ("buildah", "podman", "docker", "buildkit")
SHOP = ("assets", "cart", "catalog", "web")


@pytest.fixture(scope="module")
def host(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[GitHost]:
    with GitHost(tmp_path_factory.mktemp("host"), address=cluster.node_ip, port=0) as host:
        yield host


@pytest.fixture
def place() -> Iterator[Path]:
    """Short: sockets are below it, and podman's run root may not be long. Nothing may be left in use in it."""
    path = Path(tempfile.mkdtemp(prefix="gs-"))
    try:
        yield path
        assert used_by(path) == {}, "processes were left behind"
        mounts = [line for line in Path("/proc/self/mountinfo").read_text().splitlines() if f"{path}/" in line]
        assert mounts == [], "mounts were left behind"
    finally:
        process.remove(path)


@contextlib.contextmanager
def namespace(cluster: Cluster, host: GitHost, name: str) -> Generator[str]:
    """Also a name for a part of the registry in which nothing is found."""
    name = f"{name}-{secrets.token_hex(3)}"
    prepare_namespace(cluster, host, name)
    try:
        yield name
    finally:
        cluster.kubectl("delete", "namespace", name, "--wait=false")


def push(repository: Repository, message: str) -> str:
    sha = repository.commit(message)
    repository.push()
    return sha


def test_hello_is_served_updated_and_left_alone_by_a_commit_that_touches_no_input(
    cluster: Cluster, host: GitHost, place: Path
) -> None:
    repository = clone_of_sample(host, "outside/hello", "hello", place / "clone")
    first = push(repository, "Greet")
    with (
        namespace(cluster, host, "outside-hello") as here,
        Follower(cluster, place / "g", url=repository.url, namespace=here, registry=here) as gitsync,
    ):
        served = gitsync.served(first)
        assert (served["sync"], served["health"]) == ("Synced", "Healthy")
        assert get(service_url(cluster, here, "hello")) == "Hello Kubernetes!\n"
        assert len(tags(cluster, f"{here}/kubetm/hello")) == 1

        repository.edit("hello/hello.js", "Hello Kubernetes!", "Hello again!")
        gitsync.served(push(repository, "Greet again"))
        assert get(service_url(cluster, here, "hello")) == "Hello again!\n"
        assert len(tags(cluster, f"{here}/kubetm/hello")) == 2

        running = eventually(lambda: settled(cluster, here, "hello", 2), "the old pods are gone", seconds=60)
        built = gitsync.metric("gitsync_build_duration_seconds_count")
        assert built == 2
        repository.write("README.md", "An example.\n")
        gitsync.served(push(repository, "Describe it"))
        assert gitsync.metric("gitsync_build_duration_seconds_count") == built
        assert len(tags(cluster, f"{here}/kubetm/hello")) == 2
        assert settled(cluster, here, "hello", 2) == running


def test_a_bare_pod_is_updated_by_whoever_accepts_the_interruption(
    cluster: Cluster, host: GitHost, place: Path
) -> None:
    repository = clone_of_sample(host, "outside/hello-pod", "hello-pod", place / "clone")
    first = push(repository, "Greet")
    with (
        namespace(cluster, host, "outside-pod") as here,
        Follower(
            cluster, place / "g", url=repository.url, namespace=here, registry=here, options=["--accept-interruption"]
        ) as gitsync,
    ):
        gitsync.served(first)
        assert get(service_url(cluster, here, "hello-svc")) == "Hello Kubernetes!\n"
        repository.edit("hello/hello.js", "Hello Kubernetes!", "Hello again!")
        gitsync.served(push(repository, "Greet again"))
        assert get(service_url(cluster, here, "hello-svc")) == "Hello again!\n"
        mine = [each for each in cluster.audit_events() if each["objectRef"].get("namespace") == here]
        writers = {each["user"]["username"] for each in mine}
        assert "e2e-admin" in writers
        assert "system:serviceaccount:gitsync:gitsync" not in writers, "the gitsync of the cluster meddles"


@pytest.fixture(scope="module")
def shop(host: GitHost, tmp_path_factory: pytest.TempPathFactory) -> Repository:
    """One commit that every builder builds."""
    repository = clone_of_sample(host, "outside/shop", "shop", tmp_path_factory.mktemp("shop") / "clone")
    push(repository, "Open the shop")
    return repository


@pytest.fixture(scope="module")
def fingerprints() -> dict[str, dict[str, str]]:
    """Builder → module → tag, as far as the builders have run."""
    return {}


@pytest.mark.parametrize("builder", BUILDERS)
def test_each_builder_builds_the_shop_and_its_images_serve(
    cluster: Cluster,
    host: GitHost,
    place: Path,
    shop: Repository,
    fingerprints: dict[str, dict[str, str]],
    builder: str,
) -> None:
    with (
        engine(cluster, builder, place / "e") as environment,
        namespace(cluster, host, f"outside-{builder}") as here,
        Follower(
            cluster,
            place / "g",
            url=shop.url,
            namespace=here,
            builder=builder,
            registry=here,
            environment=environment,
        ) as gitsync,
    ):
        gitsync.served(shop.head, seconds=420)
        assert gitsync.metric("gitsync_build_duration_seconds_count") == len(SHOP)
        page = eventually(lambda: complete(get(service_url(cluster, here, "web"))), "each module answers the front")
        assert "motto" not in page.lower()
        assert "Everything must go" in page
        assert '"price": 135' in page
        assert "cart: 12" in page
        running = deployed(cluster, here)
    assert set(running) == set(SHOP)
    found = {module: tags(cluster, f"{here}/kubetm/{module}") for module in SHOP}
    assert all(len(each) == 1 for each in found.values()), "one image of each module"
    for module, reference in running.items():
        assert reference.startswith(f"{cluster.registry_host}/{here}/kubetm/{module}@sha256:")
    fingerprints[builder] = {module: each[0] for module, each in found.items()}
    assert all(each == fingerprints[builder] for each in fingerprints.values()), "the same commit, another fingerprint"


def complete(page: str) -> str:
    return page if "away" not in page else ""


def deployed(cluster: Cluster, namespace: str) -> dict[str, str]:
    """Module → the one image that its pods run."""
    found: dict[str, str] = {}
    for module in SHOP:
        images = {
            container["image"]
            for pod in pods(cluster, namespace, module)
            for container in pod["spec"]["containers"]
            if "deletionTimestamp" not in pod["metadata"]
        }
        (found[module],) = images
    return found


def settled(cluster: Cluster, namespace: str, app: str, count: int) -> Mapping[str, str]:
    """Name → UID of the pods, once there are exactly so many; else empty."""
    listed = {pod["metadata"]["name"]: pod["metadata"]["uid"] for pod in pods(cluster, namespace, app)}
    return listed if len(listed) == count else {}


def tags(cluster: Cluster, repository: str) -> list[str]:
    """The tags of a repository of the registry."""
    environment = os.environ | cluster.container_environment()
    argv = ["skopeo", "list-tags", "--tls-verify=false", f"docker://{cluster.registry_host}/{repository}"]
    return json.loads(cluster.run_in(argv, env=environment).stdout)["Tags"]


def used_by(directory: Path) -> dict[int, str]:
    """Processes that have the directory in their command, environment, folder or root → their command."""
    text = os.fsencode(f"{directory}/")
    found: dict[int, str] = {}
    for entry in Path("/proc").glob("[0-9]*"):
        if int(entry.name) == os.getpid():
            continue
        with contextlib.suppress(OSError):
            command = (entry / "cmdline").read_bytes()
            links = b"\0".join(os.fsencode(f"{os.readlink(entry / link)}/") for link in ("cwd", "root", "exe"))
            if text in command + b"\0" + (entry / "environ").read_bytes() + b"\0" + links:
                found[int(entry.name)] = command.replace(b"\0", b" ").decode(errors="replace")
    return found
