"""From ``git push`` to a serving version: hello, hello-pod, and shop module by module."""

import contextlib
import json
import os
from collections.abc import Generator
from pathlib import Path

import pytest

from tests.cluster import builds
from tests.e2e.world import Project, World, eventually

pytestmark = pytest.mark.e2e

EXTERNAL_ADDRESS = "192.168.56.30"
"""Of hello-pod's Service. It is asked only inside the cluster's own network, after the node was given it."""
STATEMENT = "a bare Pod cannot roll without an interruption"


def deployed_images(project: Project) -> dict[str, str]:
    """``deployment/container`` → image."""
    listed = json.loads(project.kubectl("get", "deployments", "-o", "json"))["items"]
    return {
        f"{each['metadata']['name']}/{container['name']}": container["image"]
        for each in listed
        for container in each["spec"]["template"]["spec"]["containers"]
    }


@contextlib.contextmanager
def moved_base_tag(world: World, folder: Path, name: str) -> Generator[None]:
    """``name`` is another image on the registry while this lasts."""
    (folder / "Dockerfile").write_text(f"FROM {name}\nLABEL moved=yes\n")
    tagged = f"docker://{world.cluster.registry_host}/library/{name}"
    environment = os.environ | world.cluster.container_environment()

    def skopeo(*words: str) -> str:
        return world.cluster.run_in(["skopeo", *words], env=environment).stdout.strip()

    def digest() -> str:
        return skopeo("inspect", "--no-tags", "--tls-verify=false", "--format={{.Digest}}", tagged)

    former = digest()
    builds.build(world.cluster, folder, f"moved/{name}", network=False)
    try:
        builds.push(world.cluster, f"moved/{name}", f"library/{name}")
        assert digest() != former
        yield
    finally:
        tls = ("--src-tls-verify=false", "--dest-tls-verify=false")
        skopeo("copy", "--quiet", *tls, f"{tagged.rpartition(':')[0]}@{former}", tagged)


def test_hello_is_served_and_updated_and_left_alone_by_what_does_not_concern_it(world: World, tmp_path: Path) -> None:
    with world.project("hello") as hello:
        hello.follow()
        status = hello.wait_for(hello.repository.head)
        assert hello.get("hello") == "Hello Kubernetes!\n"
        (image,) = status["images"]
        assert image["reference"].startswith(f"{hello.images}/")
        assert "@sha256:" in image["reference"]
        assert deployed_images(hello) == {"hello/hello": image["reference"]}
        assert len(hello.pushes()) == 1

        hello.repository.edit("hello/hello.js", "Hello Kubernetes!", "Hello again!")
        second = hello.repository.commit("Greet again")
        hello.repository.push()
        status = hello.wait_for(second)
        assert hello.get("hello") == "Hello again!\n"
        assert len(hello.pushes()) == 2

        def settled() -> dict[str, str] | None:
            pods = hello.pods(app="hello")
            return pods if len(pods) == 2 else None

        pods, writes = eventually(settled, "two pods"), hello.writes()
        with moved_base_tag(world, tmp_path, "node:slim"):
            hello.repository.write("README.md", "An example.\n")
            third = hello.repository.commit("Describe it")
            hello.repository.push()
            status = hello.wait_for(third)
        assert len(hello.pushes()) == 2
        assert hello.pods(app="hello") == pods
        assert hello.writes() == writes
        assert deployed_images(hello) == {"hello/hello": status["images"][0]["reference"]}


def test_hello_pod_is_deployed_and_updated_with_a_plain_word_about_the_interruption(world: World) -> None:
    world.cluster.add_address(EXTERNAL_ADDRESS)
    with world.project("hello-pod") as project:

        def answer() -> str:
            with contextlib.suppress(OSError):
                return project.get("hello-svc", address=EXTERNAL_ADDRESS)
            return ""

        def update(old: str, new: str) -> str:
            project.repository.edit("hello/hello.js", old, new)
            sha = project.repository.commit(f"Say {new}")
            project.repository.push()
            return sha

        project.follow()
        status = project.wait_for(project.repository.head)
        eventually(lambda: answer() == "Hello Kubernetes!\n", "the first version answers on the external address")
        (finding,) = [each for each in status["findings"] if each["rule"] == "bare-pod"]
        assert finding["object"] == f"Pod/{project.namespace}/hello-pod"
        assert "manifests/pod.yaml:" in finding["message"]
        assert STATEMENT in finding["message"]

        second = update("Hello Kubernetes!", "Hello again!")
        status = project.wait_for(second)
        assert answer() == "Hello again!\n", "it serves when it is said to serve"
        assert STATEMENT in status["findings"][0]["message"]

        # Whoever cannot afford the interruption says so, and is told instead.
        project.follow(zeroDowntime="enforce")
        third = update("Hello again!", "Never seen")
        status = project.wait_stalled(third)
        assert STATEMENT in status["lastAttempt"]["message"]
        assert "manifests/pod.yaml:" in status["lastAttempt"]["message"]
        (event,) = [each for each in project.events() if each["type"] == "Warning"]
        assert STATEMENT in event["note"]
        assert status["revision"].endswith(second)
        assert answer() == "Hello again!\n"


def test_a_kustomization_is_rendered_by_what_the_image_brings_along(world: World) -> None:
    with world.project(name="settings") as project:
        kustomization = "configMapGenerator:\n- name: settings\n  literals: [value=one]\n"
        project.repository.write("manifests/kustomization.yaml", kustomization)
        sha = project.repository.commit("Generate the settings")
        project.repository.push()
        project.follow()
        project.wait_for(sha)
        assert "configmap/settings-" in project.kubectl("get", "configmaps", "-o", "name")


CHANGES = {
    "catalog": ("catalog/prices.py", "100 + 7", "200 + 7", '"price": 235'),
    "web": ("web/web.js", "['shop',", "['the shop',", "the shop\n"),
    "assets": ("assets/motto.txt", "Everything must go", "Nothing must go", "Nothing must go"),
    "cart": ("cart/www/cgi-bin/total", r"\n\r\n%s", r"\n\r\n%s coins", "coins"),
}
"""Module → file, text, its replacement, and what the front page then says."""


def test_a_change_to_one_module_of_the_shop_builds_one_image_and_leaves_the_others_running(world: World) -> None:
    with world.project("shop") as shop:

        def page() -> str:
            with contextlib.suppress(OSError):
                return shop.get("web")
            return ""

        def pods() -> dict[str, dict[str, str]]:
            return {module: shop.pods(app=module) for module in CHANGES}

        shop.follow(sync={"timeout": "2m"})
        shop.wait_for(shop.repository.head)
        eventually(lambda: min(map(len, pods().values())) == 2, "two pods of each; the autoscaler starts with one")
        assert "away" not in page()
        assert sorted(_module(each) for each in shop.pushes()) == sorted(CHANGES)
        for module, (file, old, new, expected) in CHANGES.items():
            before, pushed = pods(), len(shop.pushes())
            assert expected not in page()
            shop.repository.edit(file, old, new)
            sha = shop.repository.commit(f"Change {module}")
            shop.repository.push()
            shop.wait_for(sha)
            eventually(lambda expected=expected: expected in page(), f"the page says {expected!r}")
            after = pods()
            assert [_module(each) for each in shop.pushes()[pushed:]] == [module]
            assert not set(before[module].values()) & set(after[module].values())
            assert {name: uids for name, uids in after.items() if name != module} == {
                name: uids for name, uids in before.items() if name != module
            }


def _module(pushed: str) -> str:
    return pushed.partition(":")[0].rpartition("/")[2]
