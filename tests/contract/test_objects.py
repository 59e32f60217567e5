"""Reading and writing objects: codes, reasons and what the server adds. One behaviour that gitsync relies on per test."""  # noqa: E501

import asyncio
import base64

from tests.contract.client import JSON_PATCH, MERGE, STRATEGIC, Answer, Api, Json


def config_map(name: str = "a", **data: str) -> Json:
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": data or {"k": "v"}}


def deployment(name: str = "web", **spec: object) -> Json:
    """Paused, so that no controller acts on it."""
    labels = {"app": name}
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": name, "labels": labels},
        "spec": {
            "paused": True,
            "selector": {"matchLabels": labels},
            "template": {"metadata": {"labels": labels}, "spec": {"containers": [{"name": "c", "image": "i:1"}]}},
        }
        | spec,
    }


def assert_status(answer: Answer, code: int, reason: str) -> None:
    assert (answer.code, answer.reason, answer.body.get("kind")) == (code, reason, "Status"), answer.text


async def test_create_gives_identity_and_answers_201(api: Api) -> None:
    made = await api.post(api.path("v1", "configmaps"), config_map())
    assert made.code == 201
    metadata = made.body["metadata"]
    assert metadata["namespace"] == api.namespace
    assert metadata["uid"]
    assert int(metadata["resourceVersion"]) > 0
    assert metadata["creationTimestamp"].endswith("Z")
    assert (await api.get(api.path("v1", "configmaps", "a"))).body == made.body


async def test_creating_twice_is_already_exists(api: Api) -> None:
    await api.post(api.path("v1", "configmaps"), config_map())
    again = await api.post(api.path("v1", "configmaps"), config_map())
    assert_status(again, 409, "AlreadyExists")
    assert again.message == 'configmaps "a" already exists'
    assert again.body["details"] == {"name": "a", "kind": "configmaps"}


async def test_a_generated_name_extends_its_prefix(api: Api) -> None:
    made = await api.post(api.path("v1", "configmaps"), {"metadata": {"generateName": "run-"}})
    assert made.body["metadata"]["name"].startswith("run-")
    assert len(made.body["metadata"]["name"]) == len("run-") + 5


async def test_a_missing_object_is_404_with_its_name(api: Api) -> None:
    answer = await api.get(api.path("apps/v1", "deployments", "nope"))
    assert_status(answer, 404, "NotFound")
    assert answer.message == 'deployments.apps "nope" not found'
    assert answer.body["details"] == {"name": "nope", "group": "apps", "kind": "deployments"}


async def test_an_unknown_resource_is_404(api: Api) -> None:
    for path in ("/apis/example.test/v1/things", f"/api/v1/namespaces/{api.namespace}/things/x"):
        answer = await api.get(path)
        assert answer.code == 404
        assert "could not find the requested resource" in answer.text or "404" in answer.text


async def test_a_missing_namespace_is_404(api: Api) -> None:
    answer = await api.post(api.path("v1", "configmaps", namespace="nowhere-at-all"), config_map())
    assert_status(answer, 404, "NotFound")
    assert answer.message == 'namespaces "nowhere-at-all" not found'


async def test_a_body_for_another_namespace_is_refused(api: Api) -> None:
    body = config_map() | {"metadata": {"name": "a", "namespace": "elsewhere"}}
    answer = await api.post(api.path("v1", "configmaps"), body)
    assert_status(answer, 400, "BadRequest")
    assert answer.message == "the namespace of the provided object does not match the namespace sent on the request"


async def test_an_update_needs_the_current_version(api: Api) -> None:
    path = api.path("v1", "configmaps", "a")
    made = (await api.post(api.path("v1", "configmaps"), config_map())).body
    changed = await api.put(path, made | {"data": {"k": "w"}})
    assert changed.code == 200
    assert int(changed.body["metadata"]["resourceVersion"]) > int(made["metadata"]["resourceVersion"])
    stale = await api.put(path, made | {"data": {"k": "x"}})
    assert_status(stale, 409, "Conflict")
    assert "the object has been modified; please apply your changes to the latest version" in stale.message


async def test_a_write_that_changes_nothing_keeps_the_version(api: Api) -> None:
    made = (await api.post(api.path("v1", "configmaps"), config_map())).body
    same = await api.patch(api.path("v1", "configmaps", "a"), {"data": {"k": "v"}})
    assert same.body["metadata"]["resourceVersion"] == made["metadata"]["resourceVersion"]


async def test_identity_cannot_be_changed(api: Api) -> None:
    path = api.path("v1", "configmaps", "a")
    await api.post(api.path("v1", "configmaps"), config_map())
    other = await api.patch(path, {"metadata": {"uid": "00000000-0000-0000-0000-000000000000"}})
    assert_status(other, 422, "Invalid")
    assert other.body["details"]["causes"][0]["field"] == "metadata.uid"
    live = (await api.get(path)).body
    live["metadata"]["uid"] = "00000000-0000-0000-0000-000000000000"
    other = await api.put(path, live)
    assert_status(other, 409, "Conflict")
    assert "Precondition failed: UID in precondition" in other.message


async def test_dry_run_answers_and_stores_nothing(api: Api) -> None:
    path = api.path("apps/v1", "deployments", "web")
    tried = await api.apply(path, deployment(), "m", dryRun="All")
    assert tried.code == 201
    assert tried.body["spec"]["replicas"] == 1
    assert (await api.get(path)).code == 404
    await api.apply(path, deployment(), "m")
    tried = await api.apply(path, deployment(replicas=4), "m", dryRun="All")
    assert tried.body["spec"]["replicas"] == 4
    assert (await api.get(path)).body["spec"]["replicas"] == 1
    assert (await api.delete(path, dryRun="All")).code == 200
    assert (await api.get(path)).code == 200


async def test_defaults_of_a_deployment(api: Api) -> None:
    body = deployment()
    body["spec"]["template"]["spec"]["containers"][0]["readinessProbe"] = {"httpGet": {"port": 80}}
    spec = (await api.post(api.path("apps/v1", "deployments"), body)).body["spec"]
    assert spec["strategy"] == {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": "25%", "maxUnavailable": "25%"}}
    assert (spec["progressDeadlineSeconds"], spec["revisionHistoryLimit"]) == (600, 10)
    pod = spec["template"]["spec"]
    assert (pod["restartPolicy"], pod["terminationGracePeriodSeconds"], pod["dnsPolicy"]) == (
        "Always",
        30,
        "ClusterFirst",
    )
    container = pod["containers"][0]
    assert container["imagePullPolicy"] == "IfNotPresent"
    assert container["readinessProbe"] == {
        "httpGet": {"path": "/", "port": 80, "scheme": "HTTP"},
        "failureThreshold": 3,
        "periodSeconds": 10,
        "successThreshold": 1,
        "timeoutSeconds": 1,
    }


async def test_defaults_of_a_service(api: Api) -> None:
    body = {"metadata": {"name": "s"}, "spec": {"ports": [{"port": 80}], "selector": {"app": "x"}}}
    made = (await api.post(api.path("v1", "services"), body)).body
    spec = made["spec"]
    assert spec["ports"] == [{"port": 80, "protocol": "TCP", "targetPort": 80}]
    assert (spec["type"], spec["sessionAffinity"], spec["internalTrafficPolicy"]) == ("ClusterIP", "None", "Cluster")
    assert spec["clusterIPs"] == [spec["clusterIP"]]
    assert made["status"] == {"loadBalancer": {}}
    moved = await api.patch(api.path("v1", "services", "s"), {"spec": {"clusterIP": "10.96.0.9"}})
    assert_status(moved, 422, "Invalid")


async def test_defaults_of_a_job_select_its_own_pods(api: Api) -> None:
    container = {"name": "c", "image": "example.invalid/i:1"}
    spec = {"suspend": True, "template": {"spec": {"restartPolicy": "Never", "containers": [container]}}}
    made = (await api.post(api.path("batch/v1", "jobs"), {"metadata": {"name": "j"}, "spec": spec})).body
    uid = made["metadata"]["uid"]
    assert made["spec"]["selector"] == {"matchLabels": {"batch.kubernetes.io/controller-uid": uid}}
    assert made["spec"]["template"]["metadata"]["labels"]["job-name"] == "j"
    assert (made["spec"]["backoffLimit"], made["spec"]["completions"], made["spec"]["parallelism"]) == (6, 1, 1)
    container = container | {"image": "example.invalid/i:2"}
    other = {"spec": {"template": {"spec": {"containers": [container]}}}}
    refused = await api.patch(api.path("batch/v1", "jobs", "j"), other)
    assert_status(refused, 422, "Invalid")
    assert "spec.template" in refused.message
    assert "field is immutable" in refused.message


async def test_a_secret_stores_text_as_base64(api: Api) -> None:
    made = await api.post(api.path("v1", "secrets"), {"metadata": {"name": "s"}, "stringData": {"a": "text"}})
    assert made.body["data"] == {"a": base64.b64encode(b"text").decode()}
    assert made.body["type"] == "Opaque"
    assert "stringData" not in made.body
    changed = await api.patch(api.path("v1", "secrets", "s"), {"type": "other"})
    assert_status(changed, 422, "Invalid")


async def test_an_immutable_config_map_stays(api: Api) -> None:
    await api.post(api.path("v1", "configmaps"), config_map() | {"immutable": True})
    answer = await api.patch(api.path("v1", "configmaps", "a"), {"data": {"k": "w"}})
    assert_status(answer, 422, "Invalid")
    assert "field is immutable when `immutable` is set" in answer.message


async def test_strict_validation_names_unknown_fields(api: Api) -> None:
    path, body = api.path("apps/v1", "deployments"), deployment(replica=3)
    strict = await api.post(path, body, fieldValidation="Strict")
    assert_status(strict, 400, "BadRequest")
    assert strict.message == (
        'Deployment in version "v1" cannot be handled as a Deployment: strict decoding error: unknown field "spec.replica"'  # noqa: E501
    )
    warned = await api.post(path, body, fieldValidation="Warn")
    assert warned.code == 201
    assert "replica" not in warned.body["spec"]
    assert warned.headers["Warning"] == '299 - "unknown field \\"spec.replica\\""'
    ignored = await api.post(path, deployment("other", replica=3), fieldValidation="Ignore")
    assert "Warning" not in ignored.headers
    nested = deployment("third")
    nested["spec"]["template"]["spec"]["containers"][0]["imagee"] = "x"
    strict = await api.post(path, nested, fieldValidation="Strict")
    assert 'unknown field "spec.template.spec.containers[0].imagee"' in strict.message


async def test_a_wrong_type_is_a_bad_request(api: Api) -> None:
    answer = await api.post(api.path("apps/v1", "deployments"), deployment(replicas="three"))
    assert_status(answer, 400, "BadRequest")
    assert answer.message.startswith(
        'Deployment in version "v1" cannot be handled as a Deployment: json: cannot unmarshal'
    )
    assert "spec.replicas of type int32" in answer.message


async def test_invalid_names_every_cause(api: Api) -> None:
    body = deployment(replicas=-1)
    body["spec"]["template"]["metadata"]["labels"] = {"app": "another"}
    answer = await api.post(api.path("apps/v1", "deployments"), body)
    assert_status(answer, 422, "Invalid")
    assert answer.message.startswith('Deployment.apps "web" is invalid: [')
    causes = {cause["field"]: cause for cause in answer.body["details"]["causes"]}
    assert causes["spec.replicas"]["message"] == "Invalid value: -1: must be greater than or equal to 0"
    assert causes["spec.template.metadata.labels"]["message"].endswith("`selector` does not match template `labels`")


async def test_a_bad_name_is_invalid(api: Api) -> None:
    answer = await api.post(api.path("v1", "configmaps"), config_map("Not_A_Name"))
    assert_status(answer, 422, "Invalid")
    assert "a lowercase RFC 1123 subdomain must consist of" in answer.message
    answer = await api.post(api.path("v1", "configmaps"), {"data": {}})
    assert_status(answer, 422, "Invalid")
    assert "name or generateName is required" in answer.message


async def test_merge_patch_replaces_lists_and_drops_nulls(api: Api) -> None:
    path = api.path("apps/v1", "deployments", "web")
    await api.post(api.path("apps/v1", "deployments"), deployment())
    body = {"metadata": {"labels": {"app": None, "new": "1"}}, "spec": {"revisionHistoryLimit": 3}}
    answer = await api.patch(path, body, MERGE)
    assert answer.body["metadata"]["labels"] == {"new": "1"}
    assert answer.body["spec"]["revisionHistoryLimit"] == 3
    assert answer.body["metadata"]["generation"] == 2


async def test_json_patch_tests_before_it_changes(api: Api) -> None:
    path = api.path("v1", "configmaps", "a")
    await api.post(api.path("v1", "configmaps"), config_map(k="v", gone="1"))
    steps = [
        {"op": "test", "path": "/data/k", "value": "v"},
        {"op": "replace", "path": "/data/k", "value": "w"},
        {"op": "add", "path": "/metadata/labels", "value": {"a~b": "1"}},
        {"op": "remove", "path": "/data/gone"},
    ]
    answer = await api.patch(path, steps, JSON_PATCH)
    assert_status(answer, 422, "Invalid")  # a~b is no label
    steps[2] = {"op": "add", "path": "/metadata/labels", "value": {"a": "1"}}
    answer = await api.patch(path, steps, JSON_PATCH)
    assert (answer.body["data"], answer.body["metadata"]["labels"]) == ({"k": "w"}, {"a": "1"})
    answer = await api.patch(path, steps, JSON_PATCH)
    assert_status(answer, 422, "Invalid")
    assert answer.message == "the server rejected our request due to an error in our request"


async def test_strategic_merge_patch_merges_lists_by_key(api: Api) -> None:
    path = api.path("apps/v1", "deployments", "web")
    await api.post(api.path("apps/v1", "deployments"), deployment())
    containers = [{"name": "side", "image": "s:1"}, {"name": "c", "env": [{"name": "A", "value": "1"}]}]
    answer = await api.patch(path, {"spec": {"template": {"spec": {"containers": containers}}}}, STRATEGIC)
    found = {each["name"]: each for each in answer.body["spec"]["template"]["spec"]["containers"]}
    assert found["c"]["image"] == "i:1"
    assert found["c"]["env"] == [{"name": "A", "value": "1"}]
    assert found["side"]["image"] == "s:1"
    drop = {"spec": {"template": {"spec": {"containers": [{"name": "side", "$patch": "delete"}]}}}}
    answer = await api.patch(path, drop, STRATEGIC)
    assert [each["name"] for each in answer.body["spec"]["template"]["spec"]["containers"]] == ["c"]


async def test_unknown_media_types_are_415(api: Api) -> None:
    answer = await api.request("POST", api.path("v1", "configmaps"), config_map(), media="text/plain")
    assert_status(answer, 415, "UnsupportedMediaType")
    await api.post(api.path("v1", "configmaps"), config_map())
    answer = await api.patch(api.path("v1", "configmaps", "a"), {}, "application/json")
    assert_status(answer, 415, "UnsupportedMediaType")


async def test_a_body_that_is_no_object_is_a_bad_request(api: Api) -> None:
    for raw in (b"{", b"[]", b"", b'"text"'):
        answer = await api.request("POST", api.path("v1", "configmaps"), raw)
        assert (answer.code, answer.body.get("status")) == (400, "Failure"), (raw, answer.text)


async def test_apply_takes_yaml_and_needs_a_manager(api: Api) -> None:
    path = api.path("v1", "configmaps", "a")
    raw = b"apiVersion: v1\nkind: ConfigMap\nmetadata:\n  name: a\ndata:\n  k: 'no'\n"
    answer = await api.patch(path, raw, "application/apply-patch+yaml", fieldManager="m")
    assert (answer.code, answer.body["data"]) == (201, {"k": "no"})
    answer = await api.patch(path, raw, "application/apply-patch+yaml")
    assert_status(answer, 422, "Invalid")
    assert "fieldManager: Required value: is required for apply patch" in answer.message


async def test_delete_answers_and_removes(api: Api) -> None:
    path = api.path("v1", "configmaps", "a")
    made = (await api.post(api.path("v1", "configmaps"), config_map())).body
    wrong = await api.delete(path, {"preconditions": {"uid": "00000000-0000-0000-0000-000000000000"}})
    assert_status(wrong, 409, "Conflict")
    assert (await api.get(path)).code == 200
    gone = await api.delete(path, {"preconditions": {"uid": made["metadata"]["uid"]}})
    assert (gone.code, gone.body["status"]) == (200, "Success")
    assert gone.body["details"] == {"name": "a", "kind": "configmaps", "uid": made["metadata"]["uid"]}
    assert_status(await api.delete(path), 404, "NotFound")


async def test_finalizers_hold_an_object(api: Api) -> None:
    path = api.path("v1", "configmaps", "a")
    body = config_map() | {"metadata": {"name": "a", "finalizers": ["test.gitsync.dev/hold"]}}
    await api.post(api.path("v1", "configmaps"), body)
    answer = await api.delete(path)
    assert (answer.code, answer.body["kind"]) == (200, "ConfigMap")
    held = (await api.get(path)).body
    assert held["metadata"]["deletionTimestamp"]
    assert held["metadata"]["deletionGracePeriodSeconds"] == 0
    more = await api.patch(path, {"metadata": {"finalizers": ["test.gitsync.dev/hold", "test.gitsync.dev/late"]}})
    assert_status(more, 422, "Invalid")
    assert (await api.patch(path, {"metadata": {"finalizers": None}})).code == 200
    assert (await api.get(path)).code == 404


async def test_delete_collection_by_label(api: Api) -> None:
    for name in ("a", "b", "c"):
        body = config_map(name) | {"metadata": {"name": name, "labels": {"keep": str(name == "b").lower()}}}
        await api.post(api.path("v1", "configmaps"), body)
    assert (await api.delete(api.path("v1", "configmaps"), labelSelector="keep=false")).code == 200
    left = (await api.get(api.path("v1", "configmaps"), labelSelector="keep")).body["items"]
    assert [each["metadata"]["name"] for each in left] == ["b"]


async def test_generation_counts_changes_of_the_spec(api: Api) -> None:
    path = api.path("apps/v1", "deployments", "web")
    made = (await api.post(api.path("apps/v1", "deployments"), deployment())).body
    assert made["metadata"]["generation"] == 1
    labelled = await api.patch(path, {"metadata": {"labels": {"x": "1"}}})
    assert labelled.body["metadata"]["generation"] == 1
    changed = await api.patch(path, {"spec": {"minReadySeconds": 1}})
    assert changed.body["metadata"]["generation"] == 2


async def test_status_is_written_through_its_own_endpoint_only(api: Api) -> None:
    path = api.path("policy/v1", "poddisruptionbudgets")
    body = {"metadata": {"name": "b"}, "spec": {"minAvailable": 1, "selector": {"matchLabels": {"no": "pod"}}}}
    made = await api.post(path, body | {"status": {"currentHealthy": 9}})
    assert made.body["status"].get("currentHealthy", 0) == 0
    status = {"status": {"conditions": [
        {"type": "Test", "status": "True", "reason": "R", "message": "", "lastTransitionTime": "2024-01-01T00:00:00Z"}
    ]}, "spec": {"minAvailable": 5}}  # fmt: skip
    answer = await api.patch(f"{path}/b/status", status, MERGE, fieldManager="m")
    assert answer.code == 200, answer.text
    assert "Test" in [each["type"] for each in answer.body["status"]["conditions"]]
    assert answer.body["spec"]["minAvailable"] == 1
    entry = next(each for each in answer.body["metadata"]["managedFields"] if each["manager"] == "m")
    assert entry["subresource"] == "status"


async def test_scale_is_a_view_of_replicas(api: Api) -> None:
    path = api.path("apps/v1", "deployments", "web")
    await api.post(api.path("apps/v1", "deployments"), deployment(replicas=2))
    scale = (await api.get(f"{path}/scale")).body
    assert (scale["kind"], scale["apiVersion"], scale["spec"]) == ("Scale", "autoscaling/v1", {"replicas": 2})
    assert scale["status"]["selector"] == "app=web"
    answer = await api.patch(f"{path}/scale", {"spec": {"replicas": 3}}, MERGE, fieldManager="scaler")
    assert answer.body["spec"] == {"replicas": 3}
    found = (await api.get(path)).body
    assert found["spec"]["replicas"] == 3
    entry = next(each for each in found["metadata"]["managedFields"] if each["manager"] == "scaler")
    assert (entry["subresource"], entry["fieldsV1"]) == ("scale", {"f:spec": {"f:replicas": {}}})


async def test_a_namespace_is_emptied_before_it_goes(api: Api) -> None:
    name = f"{api.namespace}-2"
    made = await api.post("/api/v1/namespaces", {"metadata": {"name": name}})
    assert made.body["status"] == {"phase": "Active"}
    assert made.body["metadata"]["labels"] == {"kubernetes.io/metadata.name": name}
    body = config_map() | {"metadata": {"name": "a", "finalizers": ["test.gitsync.dev/hold"]}}
    await api.post(api.path("v1", "configmaps", namespace=name), body)
    gone = await api.delete(f"/api/v1/namespaces/{name}")
    assert gone.code == 200
    found = (await api.get(f"/api/v1/namespaces/{name}")).body
    assert found["status"]["phase"] == "Terminating"
    late = await api.post(api.path("v1", "configmaps", namespace=name), config_map("late"))
    assert_status(late, 403, "Forbidden")
    assert late.body["details"]["causes"][0]["reason"] == "NamespaceTerminating"
    await api.patch(api.path("v1", "configmaps", "a", namespace=name), {"metadata": {"finalizers": None}})


async def test_a_server_says_its_version_and_health(api: Api) -> None:
    assert (await api.get("/version")).body["major"] == "1"
    assert (await api.get("/readyz")).text == "ok"
    groups = {each["name"] for each in (await api.get("/apis")).body["groups"]}
    assert {"apps", "batch", "rbac.authorization.k8s.io", "coordination.k8s.io", "discovery.k8s.io"} <= groups
    resources = {each["name"]: each for each in (await api.get("/apis/apps/v1")).body["resources"]}
    assert resources["deployments"]["kind"] == "Deployment"
    assert {"apply", "patch", "watch"} & set(resources["deployments"]["verbs"]) >= {"patch", "watch"}
    assert resources["deployments/scale"]["kind"] == "Scale"


async def test_a_lease_is_guarded_by_its_version(api: Api) -> None:
    path = api.path("coordination.k8s.io/v1", "leases")
    spec = {"holderIdentity": "a", "leaseDurationSeconds": 15, "renewTime": "2024-01-01T00:00:00.000000Z"}
    made = (await api.post(path, {"metadata": {"name": "l"}, "spec": spec})).body
    one, two = await asyncio.gather(
        *(api.put(f"{path}/l", made | {"spec": spec | {"holderIdentity": who}}) for who in ("b", "c"))
    )
    assert sorted([one.code, two.code]) == [200, 409]


async def test_an_event_is_one_object_in_both_of_its_groups(api: Api) -> None:
    about = {"apiVersion": "v1", "kind": "ConfigMap", "name": "a", "namespace": api.namespace}
    event = {
        "metadata": {"name": "a.1", "namespace": api.namespace},
        "eventTime": "2026-01-01T00:00:00.000000Z",
        "regarding": about,
        "note": "it was changed",
        "reason": "Changed",
        "action": "Change",
        "type": "Normal",
        "reportingController": "example.com/test",
        "reportingInstance": "one",
    }
    path = api.path("events.k8s.io/v1", "events")
    made = await api.post(path, event, fieldValidation="Strict")
    assert made.code == 201, made.text
    assert (made.body["note"], made.body["regarding"]) == ("it was changed", about)
    old = (await api.get(api.path("v1", "events", "a.1"))).body
    assert (old["apiVersion"], old["message"], old["involvedObject"]) == ("v1", "it was changed", about)
    assert old["reportingComponent"] == "example.com/test"
    series = {"series": {"count": 2, "lastObservedTime": "2026-01-01T00:01:00.000000Z"}}
    changed = await api.patch(f"{path}/a.1", series | {"note": "it was changed"}, MERGE)
    assert (changed.code, changed.body["series"]["count"], changed.body["note"]) == (200, 2, "it was changed")
    listed = (await api.get(path, fieldSelector="reason=Changed")).body
    assert (listed["kind"], [each["note"] for each in listed["items"]]) == ("EventList", ["it was changed"])


async def test_a_node_port_lies_in_its_range(api: Api) -> None:
    spec = {"type": "NodePort", "ports": [{"port": 80, "nodePort": 8080}]}
    body = {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "web"}, "spec": spec}
    answer = await api.post(api.path("v1", "services"), body)
    assert_status(answer, 422, "Invalid")
    why = "provided port is not in the valid range. The range of valid ports is 30000-32767"
    assert answer.message == f'Service "web" is invalid: spec.ports[0].nodePort: Invalid value: 8080: {why}'
