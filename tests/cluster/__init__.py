"""A real Kubernetes for the tests, with its registry, git host and load generator, in a network without a way out.

``python -m tests.cluster up|status|shell|down`` by hand; in a test:

    with open_cluster() as cluster:      # one of ours that is up already is used, and left up
        cluster.enter()                  # this process now sees the cluster's network, and no other
        cluster.kubectl("apply", "-f", "manifests/hello/")

A first start compiles Kubernetes, etcd and CoreDNS (minutes) and assembles base images (seconds) into a cache outside
the tree; from then on a start takes ten seconds. The cluster's own parts:

    choice      which cluster: a kubeconfig, kind, k3d, ours; the protocol that the tests use
    own         ours: start, stop, run a program inside; configuration (pure), pki, init (its first process)
    leftovers   proves that a cluster that ended left nothing on the machine
    binaries    compiled once from the pinned modules in go/; packages: what the system must have
    baseimages  node:slim, python:slim, busybox, … from the machine's packages; oci: the bytes of an image
    githost     smart HTTP with a login, and failures on demand; load: an open-loop load generator

It never contacts an address outside its network namespace. Only compiling and assembling use package clients,
before the namespace exists.
"""

from .choice import Cluster, NotOffered, open_cluster
from .own import ClusterError, OwnCluster

__all__ = ["Cluster", "ClusterError", "NotOffered", "OwnCluster", "open_cluster"]
