"""Health by kind: the object's interesting half as YAML, beside the verdict and a piece of its message."""
# ruff: noqa: E501  (a row of the table is one line)

from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from gitsync.model import Health, HealthStatus, Json, ObjectRef
from gitsync.rollout.health import WORST_FIRST, aggregate, describe, gates, health

H, P, D, S, U = "Healthy", "Progressing", "Degraded", "Suspended", "Unknown"

DEPLOYMENT = "apps/v1 Deployment"
STATEFUL_SET = "apps/v1 StatefulSet"
DAEMON_SET = "apps/v1 DaemonSet"
REPLICA_SET = "apps/v1 ReplicaSet"
CONTROLLER = "v1 ReplicationController"
POD = "v1 Pod"
JOB = "batch/v1 Job"
CRON_JOB = "batch/v1 CronJob"
CLAIM = "v1 PersistentVolumeClaim"
VOLUME = "v1 PersistentVolume"
SERVICE = "v1 Service"
INGRESS = "networking.k8s.io/v1 Ingress"
HPA = "autoscaling/v2 HorizontalPodAutoscaler"
PDB = "policy/v1 PodDisruptionBudget"
API_SERVICE = "apiregistration.k8s.io/v1 APIService"
CRD = "apiextensions.k8s.io/v1 CustomResourceDefinition"
NAMESPACE = "v1 Namespace"
NODE = "v1 Node"
CUSTOM = "example.org/v1 Widget"

FULL = "replicas: 3, updatedReplicas: 3, readyReplicas: 3, availableReplicas: 3"
DONE = "{type: Progressing, status: 'True', reason: NewReplicaSetAvailable}, {type: Available, status: 'True'}"
READY = "conditions: [{type: Ready, status: 'True'}]"
UNREADY = "conditions: [{type: Ready, status: 'False', reason: ContainersNotReady, message: 'unready: [web]'}]"
QUOTA = "{type: ReplicaFailure, status: 'True', reason: FailedCreate, message: 'pods \"a\" is forbidden: exceeded quota: q'}"
DENIED = "{type: ReplicaFailure, status: 'True', reason: FailedCreate, message: 'violates PodSecurity \"restricted\"'}"


def waiting(reason: str, message: str = "", last: str = "", field: str = "containerStatuses") -> str:
    text = f"message: '{message}'" if message else ""
    return f"{field}: [{{name: web, restartCount: 4, state: {{waiting: {{reason: {reason}, {text}}}}}, {last}}}]"


TABLE: list[tuple[str, str, str, str]] = [
    # Deployment
    (DEPLOYMENT, f"{{spec: {{replicas: 3}}, status: {{observedGeneration: 1, {FULL}, conditions: [{DONE}]}}}}", H, ""),
    (DEPLOYMENT, f"{{spec: {{replicas: 3}}, status: {{{FULL}}}}}", H, ""),
    (DEPLOYMENT, "{spec: {}, status: {replicas: 1, updatedReplicas: 1, readyReplicas: 1, availableReplicas: 1}}", H, ""),
    (DEPLOYMENT, f"{{spec: {{replicas: 0}}, status: {{observedGeneration: 1, conditions: [{DONE}]}}}}", H, ""),
    (DEPLOYMENT, "{spec: {replicas: 0}, metadata: {generation: 1}, status: {}}", P, "observe"),
    (DEPLOYMENT, "{spec: {replicas: 0}}", P, "observe"),
    (DEPLOYMENT, "{spec: {replicas: 3}, metadata: {generation: 1}}", P, "observe"),
    (DEPLOYMENT, f"{{metadata: {{generation: 2}}, spec: {{replicas: 3}}, status: {{observedGeneration: 1, {FULL}}}}}", P,
     "generation 2 (it has seen 1)"),
    (DEPLOYMENT, f"{{metadata: {{generation: 2}}, spec: {{replicas: 3}}, status: {{observedGeneration: 2, {FULL}}}}}", H, ""),
    (DEPLOYMENT, f"{{metadata: {{generation: 2}}, spec: {{replicas: 3}}, status: {{{FULL}}}}}", P, "generation 2"),
    (DEPLOYMENT, f"{{spec: {{replicas: 4}}, status: {{{FULL}}}}}", P, "3 of 4 replicas are updated"),
    (DEPLOYMENT, "{spec: {replicas: 3}, status: {replicas: 4, updatedReplicas: 3, readyReplicas: 4, availableReplicas: 4}}", P,
     "1 old replicas still run"),
    (DEPLOYMENT, f"{{spec: {{replicas: 2}}, status: {{{FULL}}}}}", P, "1 surplus"),
    (DEPLOYMENT, "{spec: {replicas: 3}, status: {replicas: 3, updatedReplicas: 3, readyReplicas: 3, availableReplicas: 2}}", P,
     "2 of 3 replicas are available"),
    (DEPLOYMENT, "{spec: {replicas: 3}, status: {replicas: 3, updatedReplicas: 3, readyReplicas: 1, availableReplicas: 3}}", P,
     "1 of 3 replicas are available"),
    (DEPLOYMENT, f"{{spec: {{replicas: 3}}, status: {{{FULL}, conditions: [{{type: Progressing, status: 'True', "
     "reason: ReplicaSetUpdated, message: still at it}]}}", P, "still at it"),
    (DEPLOYMENT, f"{{spec: {{replicas: 3}}, status: {{{FULL}, conditions: [{{type: Available, status: 'False', "
     "reason: MinimumReplicasUnavailable}]}}", P, "MinimumReplicasUnavailable"),
    (DEPLOYMENT, "{spec: {replicas: 3}, status: {replicas: 4, updatedReplicas: 1, conditions: [{type: Progressing, "
     "status: 'False', reason: ProgressDeadlineExceeded, message: ReplicaSet web-1 has timed out progressing.}]}}", D, "timed out"),
    (DEPLOYMENT, "{spec: {replicas: 3}, status: {replicas: 4, updatedReplicas: 1, conditions: [{type: Progressing, "
     f"status: 'False', reason: ProgressDeadlineExceeded}}, {QUOTA}]}}}}", D, "exceeded quota"),
    (DEPLOYMENT, f"{{spec: {{replicas: 3}}, status: {{replicas: 3, conditions: [{QUOTA}]}}}}", P, "exceeded quota"),
    (DEPLOYMENT, f"{{spec: {{replicas: 3}}, status: {{replicas: 3, conditions: [{DENIED}]}}}}", D, "PodSecurity"),
    (DEPLOYMENT, f"{{spec: {{paused: true, replicas: 3}}, status: {{observedGeneration: 1, {FULL}}}}}", S, "paused"),
    (DEPLOYMENT, "{metadata: {deletionTimestamp: '2024-01-01T00:00:00Z'}, spec: {}}", P, "terminating"),
    (DEPLOYMENT, "{spec: {replicas: three}, status: {replicas: 3}}", U, "spec.replicas is a string, expected an integer"),
    (DEPLOYMENT, "{spec: {replicas: 3}, status: {replicas: true}}", U, "status.replicas is a boolean"),
    (DEPLOYMENT, "{spec: {replicas: 3}, status: [1]}", U, "status is a list"),
    (DEPLOYMENT, "{spec: {replicas: 3}, status: {conditions: {type: Ready}}}", U, "status.conditions is an object"),
    (DEPLOYMENT, "{spec: {replicas: 3}, status: {conditions: [Ready]}}", U, "status.conditions[0] is a string"),
    (DEPLOYMENT, "{spec: nothing, status: {replicas: 1}}", U, "spec is a string"),
    (DEPLOYMENT, "{metadata: {generation: '2'}, status: {replicas: 1}}", U, "metadata.generation is a string"),
    ("extensions/v1beta1 Deployment", "{spec: {replicas: 3}}", H, ""),  # served by nothing today: by conditions
    # StatefulSet
    (STATEFUL_SET, "{spec: {replicas: 3}, status: {observedGeneration: 1, replicas: 3, readyReplicas: 3, currentReplicas: 3, "
     "updatedReplicas: 3, currentRevision: a, updateRevision: a}}", H, ""),
    (STATEFUL_SET, "{spec: {replicas: 3}, status: {replicas: 3, readyReplicas: 3, currentRevision: a, updateRevision: b, "
     "updatedReplicas: 1}}", P, "1 of 3 replicas are updated"),
    (STATEFUL_SET, "{spec: {replicas: 3, updateStrategy: {type: RollingUpdate, rollingUpdate: {partition: 0}}}, status: "
     "{replicas: 3, readyReplicas: 3, currentRevision: a, updateRevision: b, updatedReplicas: 2}}", P, "2 of 3"),
    (STATEFUL_SET, "{spec: {replicas: 3, updateStrategy: {rollingUpdate: {partition: 2}}}, status: {replicas: 3, readyReplicas: 3, "
     "currentRevision: a, updateRevision: b, updatedReplicas: 1}}", H, ""),
    (STATEFUL_SET, "{spec: {replicas: 3, updateStrategy: {rollingUpdate: {partition: 2}}}, status: {replicas: 3, readyReplicas: 3, "
     "currentRevision: a, updateRevision: b}}", P, "0 of 1"),
    (STATEFUL_SET, "{spec: {replicas: 3, updateStrategy: {rollingUpdate: {partition: 5}}}, status: {replicas: 3, readyReplicas: 3, "
     "currentRevision: a, updateRevision: b}}", H, ""),
    (STATEFUL_SET, "{spec: {replicas: 3, updateStrategy: {type: OnDelete}}, status: {replicas: 3, readyReplicas: 3, "
     "currentRevision: a, updateRevision: b}}", H, ""),
    (STATEFUL_SET, "{spec: {replicas: 3, updateStrategy: {type: OnDelete}}, status: {replicas: 3, readyReplicas: 2}}", P, "2 of 3"),
    (STATEFUL_SET, "{spec: {replicas: 3}, status: {replicas: 2, readyReplicas: 2}}", P, "2 of 3 replicas are available"),
    (STATEFUL_SET, "{spec: {replicas: 1}, status: {replicas: 2, readyReplicas: 2}}", P, "1 surplus"),
    (STATEFUL_SET, "{spec: {replicas: 3}, status: {replicas: 3, readyReplicas: 3, availableReplicas: 2, currentRevision: a, "
     "updateRevision: a}}", P, "2 of 3"),
    (STATEFUL_SET, "{spec: {replicas: 0}, status: {observedGeneration: 1, replicas: 0}}", H, ""),
    (STATEFUL_SET, "{metadata: {generation: 3}, spec: {replicas: 0}, status: {observedGeneration: 2, replicas: 0}}", P, "generation 3"),
    (STATEFUL_SET, "{spec: {replicas: 1}}", P, "observe"),
    (STATEFUL_SET, "{spec: {replicas: 1, updateStrategy: Rolling}, status: {replicas: 1, readyReplicas: 1}}", U, "updateStrategy"),
    # DaemonSet
    (DAEMON_SET, "{status: {desiredNumberScheduled: 2, currentNumberScheduled: 2, updatedNumberScheduled: 2, numberAvailable: 2, "
     "numberReady: 2}}", H, ""),
    (DAEMON_SET, "{status: {desiredNumberScheduled: 0, currentNumberScheduled: 0, numberReady: 0}}", H, ""),
    (DAEMON_SET, "{status: {desiredNumberScheduled: 2, currentNumberScheduled: 1, numberReady: 1}}", P, "1 of 2 nodes"),
    (DAEMON_SET, "{status: {desiredNumberScheduled: 2, currentNumberScheduled: 2, updatedNumberScheduled: 1, numberAvailable: 2, "
     "numberReady: 2}}", P, "1 of 2 pods are updated"),
    (DAEMON_SET, "{spec: {updateStrategy: {type: OnDelete}}, status: {desiredNumberScheduled: 2, currentNumberScheduled: 2, "
     "updatedNumberScheduled: 1, numberAvailable: 2, numberReady: 2}}", H, ""),
    (DAEMON_SET, "{status: {desiredNumberScheduled: 2, currentNumberScheduled: 2, updatedNumberScheduled: 2, numberAvailable: 1, "
     "numberReady: 2}}", P, "1 of 2 pods are available"),
    (DAEMON_SET, "{status: {desiredNumberScheduled: 2, currentNumberScheduled: 2, updatedNumberScheduled: 2, numberAvailable: 2, "
     "numberReady: 1}}", P, "1 of 2 pods are available"),
    (DAEMON_SET, "{metadata: {generation: 1}, status: {}}", P, "observe"),
    (DAEMON_SET, "{metadata: {generation: 1}, status: {observedGeneration: 1}}", P, "count the nodes"),
    (DAEMON_SET, "{metadata: {generation: 2}, status: {observedGeneration: 1, desiredNumberScheduled: 0}}", P, "generation 2"),
    # ReplicaSet, ReplicationController
    (REPLICA_SET, "{spec: {replicas: 2}, status: {replicas: 2, readyReplicas: 2, availableReplicas: 2}}", H, ""),
    (REPLICA_SET, "{spec: {replicas: 2}, status: {replicas: 2, readyReplicas: 1, availableReplicas: 1}}", P, "1 of 2"),
    (REPLICA_SET, "{spec: {replicas: 0}, status: {observedGeneration: 1, replicas: 0}}", H, ""),
    (REPLICA_SET, "{spec: {replicas: 1}, status: {replicas: 2, readyReplicas: 2, availableReplicas: 2}}", P, "1 surplus"),
    (REPLICA_SET, f"{{spec: {{replicas: 1}}, status: {{replicas: 0, conditions: [{QUOTA}]}}}}", P, "quota"),
    (REPLICA_SET, f"{{spec: {{replicas: 1}}, status: {{replicas: 0, conditions: [{DENIED}]}}}}", D, "PodSecurity"),
    (REPLICA_SET, "{spec: {replicas: 1}, metadata: {generation: 1}}", P, "observe"),
    (CONTROLLER, "{spec: {replicas: 1}, status: {replicas: 1, readyReplicas: 1, availableReplicas: 1}}", H, ""),
    (CONTROLLER, "{spec: {replicas: 1}, status: {replicas: 1}}", P, "0 of 1"),
    # Pod
    (POD, f"{{spec: {{restartPolicy: Always}}, status: {{phase: Running, {READY}}}}}", H, ""),
    (POD, f"{{spec: {{}}, status: {{phase: Running, {READY}, containerStatuses: [{{name: web, restartCount: 9, lastState: "
     "{terminated: {exitCode: 1}}, state: {running: {}}}]}}", H, ""),
    (POD, f"{{status: {{phase: Running, {UNREADY}}}}}", P, "ContainersNotReady: unready: [web]"),
    (POD, "{status: {phase: Running, conditions: [{type: Ready, status: 'False', reason: ReadinessGatesNotReady, "
     "message: corresponding condition of pod readiness gate x does not exist.}]}}", P, "readiness gate x"),
    (POD, f"{{status: {{phase: Running, {UNREADY}, containerStatuses: [{{name: web, restartCount: 1, lastState: "
     "{terminated: {exitCode: 2, reason: Error}}, state: {running: {}}}]}}", D, "container web: exit code 2, 1 restart"),
    (POD, f"{{status: {{phase: Running, {UNREADY}, containerStatuses: [{{name: web, restartCount: 3, lastState: "
     "{terminated: {exitCode: 137, reason: OOMKilled}}, state: {running: {}}}]}}", D, "exit code 137 (OOMKilled), 3 restarts"),
    (POD, f"{{spec: {{restartPolicy: Never}}, status: {{phase: Running, {READY}}}}}", P, "until its containers end"),
    (POD, f"{{spec: {{restartPolicy: OnFailure}}, status: {{phase: Running, {READY}}}}}", P, "until its containers end"),
    (POD, f"{{spec: {{restartPolicy: OnFailure, containers: [{{name: web, readinessProbe: {{tcpSocket: {{port: 1}}}}}}]}}, "
     f"status: {{phase: Running, {READY}}}}}", H, ""),
    (POD, "{spec: {restartPolicy: Never}, status: {phase: Succeeded, conditions: [{type: Ready, status: 'False', "
     "reason: PodCompleted}]}}", H, ""),
    (POD, "{status: {phase: Failed, reason: Evicted, message: The node was low on memory}}", D, "Evicted: The node"),
    (POD, "{status: {phase: Failed, containerStatuses: [{name: web, state: {terminated: {exitCode: 3, reason: Error}}}]}}", D,
     "container web: exit code 3"),
    (POD, "{status: {phase: Failed, initContainerStatuses: [{name: init, state: {terminated: {exitCode: 1}}}]}}", D,
     "container init: exit code 1"),
    (POD, "{status: {phase: Failed}}", D, "the pod failed"),
    (POD, "{status: {phase: Pending}}", P, "waiting to start"),
    (POD, "{status: {}}", P, "waiting to start"),
    (POD, "{}", P, "waiting to start"),
    (POD, "{status: {phase: Unknown, message: node is gone}}", U, "node is gone"),
    (POD, "{status: {phase: Pending, conditions: [{type: PodScheduled, status: 'False', reason: Unschedulable, "
     "message: 0/3 nodes are available}]}}", P, "Unschedulable: 0/3 nodes"),
    (POD, "{status: {phase: Pending, conditions: [{type: PodScheduled, status: 'False', reason: SchedulingGated}]}}", P, "SchedulingGated"),
    (POD, f"{{status: {{phase: Pending, {waiting('ContainerCreating')}}}}}", P, "ContainerCreating"),
    (POD, f"{{status: {{phase: Pending, {waiting('PodInitializing')}}}}}", P, "PodInitializing"),
    (POD, f"{{status: {{phase: Pending, {waiting('ImagePullBackOff', 'Back-off pulling image')}}}}}", D, "ImagePullBackOff: Back-off"),
    (POD, f"{{spec: {{restartPolicy: Never}}, status: {{phase: Pending, {waiting('ErrImagePull', 'not found')}}}}}", D, "ErrImagePull"),
    (POD, f"{{status: {{phase: Pending, {waiting('InvalidImageName', 'bad')}}}}}", D, "InvalidImageName"),
    (POD, f"{{status: {{phase: Pending, {waiting('ErrImageNeverPull')}}}}}", D, "ErrImageNeverPull"),
    (POD, f"{{status: {{phase: Pending, {waiting('CreateContainerConfigError', 'no secret')}}}}}", D, "no secret"),
    (POD, f"{{status: {{phase: Pending, {waiting('ImagePullBackOff', 'x', field='initContainerStatuses')}}}}}", D, "ImagePullBackOff"),
    (POD, f"{{status: {{phase: Pending, {waiting('CrashLoopBackOff', 'x', field='initContainerStatuses')}}}}}", D, "CrashLoopBackOff"),
    (POD, f"{{status: {{phase: Running, {UNREADY}, {waiting('CrashLoopBackOff', 'back-off 40s')}}}}}", D, "CrashLoopBackOff, back-off 40s"),
    (POD, "{status: {phase: Running, " + waiting("CrashLoopBackOff", "back-off 40s",
     "lastState: {terminated: {exitCode: 1, reason: Error, message: 'no such module'}}") + "}}", D,
     "container web: CrashLoopBackOff, exit code 1, 4 restarts, last words: no such module"),
    (POD, f"{{status: {{phase: Pending, {waiting('RunContainerError', 'exec: not found')}}}}}", D, "exec: not found"),
    (POD, "{status: {phase: Pending, containerStatuses: [{name: fine, state: {running: {}}}, {name: web, state: {waiting: {reason: "
     "ErrImagePull, message: gone}}}, {name: also, state: {waiting: {reason: RunContainerError}}}]}}", D,
     "container web: ErrImagePull: gone; container also: RunContainerError"),
    (POD, "{metadata: {deletionTimestamp: '2024-01-01T00:00:00Z'}, status: {phase: Running}}", P, "terminating"),
    (POD, "{status: {phase: 7}}", U, "status.phase is an integer"),
    (POD, "{status: {phase: Running, containerStatuses: none}}", U, "containerStatuses is a string"),
    (POD, "{status: {containerStatuses: [{state: {waiting: {reason: [x]}}}]}}", U, "state.waiting.reason is a list"),
    # Job, CronJob
    (JOB, "{status: {conditions: [{type: Complete, status: 'True'}], succeeded: 1}}", H, ""),
    (JOB, "{status: {conditions: [{type: Failed, status: 'True', reason: BackoffLimitExceeded, message: reached}]}}", D,
     "BackoffLimitExceeded: reached"),
    (JOB, "{status: {conditions: [{type: FailureTarget, status: 'True', reason: DeadlineExceeded}], active: 1}}", D, "DeadlineExceeded"),
    (JOB, "{status: {conditions: [{type: Failed, status: 'False'}], active: 1}}", P, "1 pods active"),
    (JOB, "{status: {active: 2}, spec: {completions: 4}}", P, "0 of 4 completions, 2 pods active"),
    (JOB, "{status: {}}", P, "0 of 1"),
    (JOB, "{}", P, "0 of 1"),
    (JOB, "{spec: {suspend: true}, status: {conditions: [{type: Suspended, status: 'True', reason: JobSuspended}]}}", S, "JobSuspended"),
    (JOB, "{spec: {suspend: true}}", S, "suspended"),
    (JOB, "{spec: {suspend: false}, status: {conditions: [{type: Suspended, status: 'False'}], active: 1}}", P, "1 pods"),
    (JOB, "{spec: {suspend: true}, status: {conditions: [{type: Complete, status: 'True'}]}}", H, ""),
    (JOB, "{status: {active: many}}", U, "status.active"),
    (CRON_JOB, "{spec: {schedule: '* * * * *'}}", H, ""),
    (CRON_JOB, "{spec: {suspend: true}}", S, "suspended"),
    (CRON_JOB, "{spec: {suspend: 'yes'}}", U, "spec.suspend is a string, expected a boolean"),
    # storage
    (CLAIM, "{status: {phase: Bound}}", H, ""),
    (CLAIM, "{status: {phase: Pending}}", P, "first pod"),
    (CLAIM, "{status: {phase: Lost}}", D, "lost"),
    (CLAIM, "{}", P, ""),
    (CLAIM, "{status: {phase: Strange}}", U, "Strange"),
    (CLAIM, "{status: {phase: Bound, conditions: [{type: FileSystemResizePending, status: 'True'}]}}", H, ""),
    (VOLUME, "{status: {phase: Bound}}", H, ""),
    (VOLUME, "{status: {phase: Available}}", H, ""),
    (VOLUME, "{status: {phase: Released}}", H, ""),
    (VOLUME, "{status: {phase: Failed, message: deleter said no}}", D, "deleter said no"),
    (VOLUME, "{status: {phase: Pending}}", P, "not available"),
    (VOLUME, "{status: {phase: Odd}}", U, "Odd"),
    # network
    (SERVICE, "{spec: {type: ClusterIP}}", H, ""),
    (SERVICE, "{spec: {}}", H, ""),
    (SERVICE, "{spec: {type: NodePort}}", H, ""),
    (SERVICE, "{spec: {type: ExternalName, externalName: example.org}}", H, ""),
    (SERVICE, "{spec: {type: LoadBalancer}, status: {loadBalancer: {}}}", P, "load balancer"),
    (SERVICE, "{spec: {type: LoadBalancer}, status: {loadBalancer: {ingress: []}}}", P, "load balancer"),
    (SERVICE, "{spec: {type: LoadBalancer}, status: {loadBalancer: {ingress: [{ip: 192.0.2.1}]}}}", H, ""),
    (SERVICE, "{spec: {type: LoadBalancer}, status: {loadBalancer: {ingress: [{hostname: a.example}]}}}", H, ""),
    (SERVICE, "{spec: {type: LoadBalancer}, status: {loadBalancer: soon}}", U, "status.loadBalancer"),
    ("serving.knative.dev/v1 Service", "{spec: {type: LoadBalancer}, status: {" + READY + "}}", H, ""),
    (INGRESS, "{status: {loadBalancer: {}}}", P, "address"),
    (INGRESS, "{status: {loadBalancer: {ingress: [{ip: 192.0.2.1}]}}}", H, ""),
    ("extensions/v1beta1 Ingress", "{}", P, "address"),
    ("networking.k8s.io/v1 NetworkPolicy", "{spec: {podSelector: {}}}", H, ""),
    ("discovery.k8s.io/v1 EndpointSlice", "{endpoints: []}", H, ""),
    # autoscaling, disruption
    (HPA, "{status: {conditions: [{type: AbleToScale, status: 'True', reason: SucceededGetScale}, {type: ScalingActive, "
     "status: 'True', reason: ValidMetricFound}]}}", H, ""),
    (HPA, "{status: {conditions: [{type: AbleToScale, status: 'False', reason: FailedGetScale, message: no scale}]}}", D, "no scale"),
    (HPA, "{status: {conditions: [{type: AbleToScale, status: 'True'}, {type: ScalingActive, status: 'False', "
     "reason: FailedGetResourceMetric, message: no metrics}]}}", D, "no metrics"),
    (HPA, "{status: {conditions: [{type: AbleToScale, status: 'True'}, {type: ScalingActive, status: 'False', "
     "reason: ScalingDisabled}]}}", H, ""),
    (HPA, "{status: {conditions: [{type: ScalingLimited, status: 'True', reason: TooFewReplicas}]}}", H, ""),
    (HPA, "{}", P, "first look"),
    ("autoscaling/v1 HorizontalPodAutoscaler", "{metadata: {annotations: {autoscaling.alpha.kubernetes.io/conditions: "
     "'[{\"type\":\"AbleToScale\",\"status\":\"False\",\"reason\":\"FailedGetScale\"}]'}}}", D, "FailedGetScale"),
    ("autoscaling/v1 HorizontalPodAutoscaler", "{metadata: {annotations: {autoscaling.alpha.kubernetes.io/conditions: "
     "'[{\"type\":\"AbleToScale\",\"status\":\"True\"}]'}}}", H, ""),
    ("autoscaling/v1 HorizontalPodAutoscaler", "{metadata: {annotations: {autoscaling.alpha.kubernetes.io/conditions: '['}}}", U, "JSON"),
    ("autoscaling/v1 HorizontalPodAutoscaler", "{status: {currentReplicas: 1}}", P, "first look"),
    (PDB, "{status: {observedGeneration: 1, desiredHealthy: 2, currentHealthy: 3, disruptionsAllowed: 1}}", H, ""),
    (PDB, "{status: {desiredHealthy: 2, currentHealthy: 1}}", P, "1 of 2"),
    (PDB, "{status: {conditions: [{type: DisruptionAllowed, status: 'False', reason: SyncFailed, message: no controller}]}}", D,
     "no controller"),
    (PDB, "{status: {conditions: [{type: DisruptionAllowed, status: 'False', reason: InsufficientPods}]}}", H, ""),
    (PDB, "{metadata: {generation: 2}, status: {observedGeneration: 1}}", P, "generation 2"),
    (PDB, "{}", P, "first look"),
    (PDB, "{status: {desiredHealthy: 0, currentHealthy: 0, disruptionsAllowed: 0, expectedPods: 0}}", P, "first look"),
    (PDB, "{status: {observedGeneration: 1, desiredHealthy: 0, currentHealthy: 0}}", H, ""),
    # extending the API
    (API_SERVICE, "{status: {conditions: [{type: Available, status: 'True'}]}}", H, ""),
    (API_SERVICE, "{status: {conditions: [{type: Available, status: 'False', reason: MissingEndpoints}]}}", P, "MissingEndpoints"),
    (API_SERVICE, "{}", P, "not available"),
    (CRD, "{status: {conditions: [{type: NamesAccepted, status: 'True'}, {type: Established, status: 'True'}]}}", H, ""),
    (CRD, "{status: {conditions: [{type: NamesAccepted, status: 'False', reason: ListKindConflict, message: taken}]}}", D, "taken"),
    (CRD, "{status: {conditions: [{type: Established, status: 'False', reason: Installing}]}}", P, "Installing"),
    (CRD, "{status: {conditions: [{type: Established, status: 'False', reason: NotAccepted}]}}", D, "NotAccepted"),
    (CRD, "{status: {conditions: [{type: Established, status: 'True'}, {type: NonStructuralSchema, status: 'True', "
     "reason: Violations}]}}", D, "Violations"),
    (CRD, "{status: {conditions: [{type: Established, status: 'True'}, {type: Terminating, status: 'True', "
     "reason: InstanceDeletionInProgress}]}}", P, "InstanceDeletion"),
    (CRD, "{status: {}}", P, "established"),
    # cluster
    (NAMESPACE, "{status: {phase: Active}}", H, ""),
    (NAMESPACE, "{}", H, ""),
    (NAMESPACE, "{status: {phase: Terminating, conditions: [{type: NamespaceContentRemaining, status: 'True', "
     "reason: SomeResourcesRemain, message: 1 pod}]}}", P, "SomeResourcesRemain: 1 pod"),
    (NAMESPACE, "{metadata: {deletionTimestamp: x, finalizers: [a/b]}, status: {phase: Terminating}}", P, "held by a/b"),
    (NODE, "{status: {conditions: [{type: Ready, status: 'True'}]}}", H, ""),
    (NODE, "{status: {conditions: [{type: Ready, status: Unknown, reason: NodeStatusUnknown}]}}", D, "NodeStatusUnknown"),
    (NODE, "{spec: {unschedulable: true}, status: {conditions: [{type: Ready, status: 'True'}]}}", S, "cordoned"),
    (NODE, "{}", P, "kubelet"),
    # healthy by existing
    ("v1 ConfigMap", "{data: {a: b}}", H, ""),
    ("v1 Secret", "{type: Opaque}", H, ""),
    ("v1 ServiceAccount", "{}", H, ""),
    ("v1 ConfigMap", "{metadata: {deletionTimestamp: x}}", P, "terminating"),
    ("rbac.authorization.k8s.io/v1 RoleBinding", "{roleRef: {}}", H, ""),
    ("admissionregistration.k8s.io/v1 ValidatingWebhookConfiguration", "{webhooks: []}", H, ""),
    ("storage.k8s.io/v1 StorageClass", "{provisioner: x}", H, ""),
    ("v1 ResourceQuota", "{status: {hard: {pods: '1'}}}", H, ""),
    # any other kind, by its conditions
    (CUSTOM, "{spec: {}}", H, ""),
    (CUSTOM, "{status: {" + READY + "}}", H, ""),
    (CUSTOM, "{status: {conditions: [{type: Ready, status: 'False', reason: Installing, message: wait}]}}", P, "Installing: wait"),
    (CUSTOM, "{status: {conditions: [{type: Ready, status: Unknown}]}}", P, "not ready"),
    (CUSTOM, "{status: {conditions: [{type: Ready, status: 'False'}, {type: Stalled, status: 'True', reason: BadSpec}]}}", D, "BadSpec"),
    (CUSTOM, "{status: {conditions: [{type: Ready, status: 'True'}, {type: Reconciling, status: 'True', reason: Working}]}}", P, "Working"),
    (CUSTOM, "{status: {conditions: [{type: Reconciling, status: 'True'}, {type: Stalled, status: 'True', reason: Stuck}]}}", D, "Stuck"),
    (CUSTOM, "{status: {conditions: [{type: Failed, status: 'True', message: it broke}]}}", D, "it broke"),
    (CUSTOM, "{status: {conditions: [{type: Failed, status: 'False'}]}}", H, ""),
    (CUSTOM, "{status: {conditions: [{type: Synced, status: 'False'}]}}", H, ""),
    (CUSTOM, "{metadata: {generation: 3}, status: {observedGeneration: 2, " + READY + "}}", P, "generation 3"),
    (CUSTOM, "{metadata: {generation: 3}, status: {observedGeneration: 3, " + READY + "}}", H, ""),
    (CUSTOM, "{metadata: {generation: 3}, status: {conditions: [{type: Ready, status: 'True', observedGeneration: 2}]}}", P,
     "generation 2 of 3"),
    (CUSTOM, "{metadata: {generation: 3}, status: {observedGeneration: '2', " + READY + "}}", P, "generation 3"),
    (CUSTOM, "{metadata: {generation: 3}, status: {observedGeneration: '3', " + READY + "}}", H, ""),
    (CUSTOM, "{metadata: {generation: 3}, status: {observedGeneration: 5d8f7c9bd, " + READY + "}}", H, ""),
    (CUSTOM, "{metadata: {deletionTimestamp: x}, status: {" + READY + "}}", P, "terminating"),
    (CUSTOM, "{status: ready}", U, "status is a string"),
    (CUSTOM, "{metadata: here}", U, "metadata is a string"),
]  # fmt: skip


def build(kind: str, text: str) -> Json:
    version, name = kind.split()
    body: Json = yaml.safe_load(text)
    named: Json = {"name": "web", "namespace": "shop"}
    metadata: Any = body.get("metadata", {})
    return {
        "apiVersion": version,
        "kind": name,
        **body,
        "metadata": named | metadata if metadata != "here" else metadata,
    }


@pytest.mark.parametrize(("kind", "text", "status", "message"), TABLE)
def test_table(kind: str, text: str, status: str, message: str) -> None:
    verdict = health(build(kind, text))
    assert (verdict.status, message in verdict.message) == (status, True), verdict
    assert (verdict.message == "") == (status == "Healthy"), "a message says why, and only why not"


def test_the_table_is_large() -> None:
    assert len(TABLE) >= 120


def test_missing() -> None:
    ref = ObjectRef(group="apps", version="v1", kind="Deployment", namespace="shop", name="web")
    assert health(None, ref) == Health(status=HealthStatus.MISSING, message="the object does not exist", ref=ref)


def test_the_ref_is_attached() -> None:
    verdict = health(build(DEPLOYMENT, "{spec: {}}"))
    assert verdict.ref == ObjectRef(group="apps", version="v1", kind="Deployment", namespace="shop", name="web")
    other = ObjectRef(version="v1", kind="Pod", name="x")
    assert health(build(DEPLOYMENT, "{spec: {}}"), other).ref == other


@pytest.mark.parametrize(
    "broken", [{}, {"kind": "Pod"}, {"apiVersion": "v1"}, {"apiVersion": 1, "kind": "Pod"}, [], "x"]
)
def test_not_an_object_is_unknown(broken: Any) -> None:
    assert health(broken).status is HealthStatus.UNKNOWN


def test_a_long_message_is_cut_to_one_line() -> None:
    text = "{status: {conditions: [{type: Failed, status: 'True', message: \"a\\nb" + "x" * 5000 + '"}]}}'
    message = health(build(CUSTOM, text)).message
    assert message.startswith("a bx")
    assert len(message) == 500


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
)
FIELDS = ["conditions", "replicas", "phase", "containerStatuses", "initContainerStatuses", "loadBalancer", "reason"]


@given(
    kind=st.sampled_from(sorted({row[0] for row in TABLE})),
    spec=JSON | st.dictionaries(st.sampled_from(["replicas", "paused", "type", "updateStrategy", "suspend"]), JSON),
    status=JSON
    | st.dictionaries(
        st.sampled_from(FIELDS), JSON | st.lists(st.dictionaries(st.sampled_from(["type", "state"]), JSON))
    ),
)
def test_no_object_makes_it_raise(kind: str, spec: Any, status: Any) -> None:
    version, name = kind.split()
    row = describe({"apiVersion": version, "kind": name, "metadata": {"name": "x"}, "spec": spec, "status": status})
    assert row["status"] in {each.value for each in HealthStatus}


def test_describe_has_exactly_the_promised_shape() -> None:
    assert describe(build(POD, "{status: {phase: Pending}}")) == {
        "apiVersion": "v1",
        "kind": "Pod",
        "namespace": "shop",
        "name": "web",
        "status": "Progressing",
        "message": "waiting to start",
    }
    assert describe({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "a"}})["namespace"] == ""
    assert describe("nonsense") == {
        "apiVersion": "",
        "kind": "",
        "namespace": "",
        "name": "",
        "status": "Unknown",
        "message": "the object is a string, expected an object",
    }


def test_aggregate_takes_the_worst_and_names_it() -> None:
    def one(status: HealthStatus, name: str = "web") -> Health:
        return Health(status=status, message="why", ref=ObjectRef(version="v1", kind="Pod", name=name))

    for index, worse in enumerate(WORST_FIRST):
        for better in WORST_FIRST[index:]:
            assert aggregate([one(better), one(worse)]).status is worse
    assert set(WORST_FIRST) == set(HealthStatus)
    assert aggregate([]) == Health(status=HealthStatus.HEALTHY)
    assert aggregate([one(HealthStatus.HEALTHY)]).message == ""
    both = aggregate([one(HealthStatus.DEGRADED, "a"), one(HealthStatus.HEALTHY), one(HealthStatus.DEGRADED, "b")])
    assert aggregate([Health(status=HealthStatus.UNKNOWN, message="why")]).message == "why"
    assert both.message == "Pod/a: why (and 1 more Degraded)"


def test_what_the_world_decides_does_not_hold_up_a_wave() -> None:
    assert gates(ObjectRef(group="apps", version="v1", kind="Deployment", name="web"))
    assert gates(ObjectRef(group="serving.knative.dev", version="v1", kind="Service", name="web"))
    assert not gates(ObjectRef(version="v1", kind="Service", name="web"))
    assert not gates(ObjectRef(group="autoscaling", version="v2", kind="HorizontalPodAutoscaler", name="web"))
