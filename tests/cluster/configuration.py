"""The texts that the parts of the cluster are configured with. Pure: no I/O here but reading constants."""

import base64
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

NODE_NAME = "node"
NODE_IP = "10.11.0.1"
POD_RANGE = "10.12.0.0/16"
SERVICE_RANGE = "10.13.0.0/16"
API_SERVICE_IP = "10.13.0.1"
DNS_IP = "10.13.0.10"
API_SERVER = f"https://{NODE_IP}:6443"
REGISTRY_PORT = 5000
PAUSE_IMAGE = "docker.io/library/pause:latest"

REGISTRY_USER = "gitsync"
REGISTRY_PASSWORD = "push-and-pull"
_REGISTRY_HTPASSWD = "$2b$04$L5sUOi87Ge1aG7PTQLyh6e05cySExBQCRu73wtNeJS8kYk4wVKznW"
"""bcrypt of the password, cheap on purpose: every request of a pull is checked against it."""

NAMES = ("registry.test", "git.test")
"""Names of the node's address, for pods and for the node itself."""

Json = dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """A client of the API server: file stem of its key pair and kubeconfig."""

    name: str
    user: str
    group: str = ""


IDENTITIES = (
    Identity(name="admin", user="e2e-admin", group="system:masters"),
    Identity(name="kube-controller-manager", user="system:kube-controller-manager"),
    Identity(name="kube-scheduler", user="system:kube-scheduler"),
    Identity(name="kube-proxy", user="system:kube-proxy"),
    Identity(name="kubelet", user=f"system:node:{NODE_NAME}", group="system:nodes"),
    Identity(name="coredns", user="e2e-coredns", group="system:masters"),
    Identity(name="apiserver-to-kubelet", user="e2e-apiserver", group="system:masters"),
)


def kubeconfig(*, ca: str, certificate: str, key: str) -> str:
    """The three arguments are base64 of PEM."""
    cluster = {"server": API_SERVER, "certificate-authority-data": ca}
    user = {"client-certificate-data": certificate, "client-key-data": key}
    return json.dumps(
        {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "e2e", "cluster": cluster}],
            "users": [{"name": "e2e", "user": user}],
            "contexts": [{"name": "e2e", "context": {"cluster": "e2e", "user": "e2e"}}],
            "current-context": "e2e",
        },
        indent=1,
    )


def audit_policy() -> str:
    """Every write with its object's name, as soon as it is answered; no reads."""
    return json.dumps(
        {
            "apiVersion": "audit.k8s.io/v1",
            "kind": "Policy",
            "omitStages": ["RequestReceived"],
            "rules": [{"level": "None", "verbs": ["get", "list", "watch"]}, {"level": "Metadata"}],
        }
    )


def kubelet(work: Path) -> str:
    return json.dumps(
        {
            "apiVersion": "kubelet.config.k8s.io/v1beta1",
            "kind": "KubeletConfiguration",
            "containerRuntimeEndpoint": "unix:///run/containerd/containerd.sock",
            "address": "0.0.0.0",
            "authentication": {
                "anonymous": {"enabled": False},
                "webhook": {"enabled": True},
                "x509": {"clientCAFile": str(work / "pki/ca.crt")},
            },
            "authorization": {"mode": "Webhook"},
            "tlsCertFile": str(work / "pki/serving.crt"),
            "tlsPrivateKeyFile": str(work / "pki/serving.key"),
            "cgroupDriver": "cgroupfs",
            "cgroupsPerQOS": False,
            "enforceNodeAllocatable": [],
            "failSwapOn": False,
            "failCgroupV1": False,
            "oomScoreAdj": 0,
            "evictionHard": {"memory.available": "50Mi", "nodefs.available": "1%", "imagefs.available": "1%"},
            "imageGCHighThresholdPercent": 100,
            "clusterDNS": [DNS_IP],
            "clusterDomain": "cluster.local",
            "resolvConf": "/etc/resolv.conf",
            "podLogsDir": str(work / "pod-logs"),
            "volumePluginDir": str(work / "volume-plugins"),
            "serializeImagePulls": False,
            "nodeStatusUpdateFrequency": "2s",
            "nodeStatusReportFrequency": "1m",
            "registryPullQPS": 0,
            "eventRecordQPS": 0,
            "kubeAPIQPS": 100,
            "kubeAPIBurst": 200,
        },
        indent=1,
    )


def containerd(work: Path) -> str:
    return f"""\
version = 2
root = "{work}/containerd"
state = "/run/containerd"
oom_score = 0
[grpc]
  address = "/run/containerd/containerd.sock"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{PAUSE_IMAGE}"
  # Raising a score takes a capability that a container of ours may lack.
  restrict_oom_score_adj = true
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "/usr/lib/cni"
    conf_dir = "{work}/cni"
  [plugins."io.containerd.grpc.v1.cri".registry]
    config_path = "{work}/registries"
  [plugins."io.containerd.grpc.v1.cri".containerd]
    snapshotter = "overlayfs"
    default_runtime_name = "runc"
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
      runtime_type = "io.containerd.runc.v2"
"""


def hosts(authorization: str) -> dict[str, str]:
    """Folder below containerd's ``config_path`` → its hosts.toml. Docker Hub is read without a login, as in life:
    ``authorization`` is sent to the mirror by the node; our registry under its own names asks each pod for one."""
    own = f"{NODE_IP}:{REGISTRY_PORT}"
    texts = {
        "docker.io": f"""\
server = "http://{own}"
[host."http://{own}"]
  capabilities = ["pull", "resolve"]
  [host."http://{own}".header]
    Authorization = ["{authorization}"]
"""
    }
    for name in (NODE_IP, "127.0.0.1", *NAMES):
        address = f"{name}:{REGISTRY_PORT}"
        texts[address] = f"""\
server = "http://{address}"
[host."http://{address}"]
  capabilities = ["pull", "resolve", "push"]
"""
    return texts


def cni() -> str:
    """Each pod on a link of its own: whatever two pods say to each other passes the packet filter of the node,
    so a Service answers with its own address (on one bridge that takes a kernel module and a setting)."""
    return json.dumps(
        {
            "cniVersion": "0.4.0",
            "name": "pods",
            "plugins": [
                {
                    "type": "ptp",
                    "mtu": 1500,
                    "ipam": {
                        "type": "host-local",
                        "ranges": [[{"subnet": POD_RANGE}]],
                        "routes": [{"dst": "0.0.0.0/0"}],
                        "dataDir": "/run/cni",
                    },
                },
                {"type": "portmap", "capabilities": {"portMappings": True}},
            ],
        }
    )


def registry(work: Path) -> str:
    return json.dumps(
        {
            "version": "0.1",
            "log": {"level": "info", "accesslog": {"disabled": False}},
            "storage": {
                "filesystem": {"rootdirectory": str(work / "registry")},
                "delete": {"enabled": True},
                "maintenance": {"uploadpurging": {"enabled": False}},
            },
            "http": {"addr": f"0.0.0.0:{REGISTRY_PORT}", "secret": "e2e"},
            "auth": {"htpasswd": {"realm": "e2e", "path": str(work / "htpasswd")}},
        },
        indent=1,
    )


def htpasswd() -> str:
    return f"{REGISTRY_USER}:{_REGISTRY_HTPASSWD}\n"


def docker_config(registries: list[str], login: tuple[str, str]) -> str:
    """A ``.dockerconfigjson`` (or containers-auth.json) with one login for all the given registries."""
    encoded = base64.b64encode(":".join(login).encode()).decode()
    return json.dumps({"auths": {each: {"auth": encoded} for each in registries}})


def registries_conf() -> str:
    """For buildah and podman: Docker Hub's names come from our registry."""
    own = f"{NODE_IP}:{REGISTRY_PORT}"
    insecure = "".join(
        f'[[registry]]\nlocation = "{name}:{REGISTRY_PORT}"\ninsecure = true\n'
        for name in (NODE_IP, "127.0.0.1", *NAMES)
    )
    return f"""\
unqualified-search-registries = ["docker.io"]
short-name-mode = "disabled"
{insecure}
[[registry]]
prefix = "docker.io"
location = "{own}"
insecure = true
"""


def etc_hosts() -> str:
    return f"127.0.0.1 localhost\n{NODE_IP} {NODE_NAME} {' '.join(NAMES)}\n"


def corefile(work: Path) -> str:
    return f"""\
.:53 {{
    bind {NODE_IP}
    errors
    health 127.0.0.1:8085
    hosts {work}/hosts {{
        fallthrough
    }}
    kubernetes cluster.local in-addr.arpa {{
        endpoint {API_SERVER}
        kubeconfig {work}/kubeconfigs/coredns e2e
        pods verified
        ttl 1
        fallthrough in-addr.arpa
    }}
    template ANY ANY {{
        rcode NXDOMAIN
    }}
}}
"""


def dns_objects() -> list[Json]:
    """The Service under which pods find the DNS server, which runs on the node."""
    metadata = {"name": "kube-dns", "namespace": "kube-system"}
    ports = [{"name": "dns", "port": 53, "protocol": "UDP"}, {"name": "dns-tcp", "port": 53, "protocol": "TCP"}]
    return [
        {"apiVersion": "v1", "kind": "Service", "metadata": metadata, "spec": {"clusterIP": DNS_IP, "ports": ports}},
        {
            "apiVersion": "discovery.k8s.io/v1",
            "kind": "EndpointSlice",
            "metadata": metadata | {"labels": {"kubernetes.io/service-name": "kube-dns"}},
            "addressType": "IPv4",
            "ports": ports,
            "endpoints": [{"addresses": [NODE_IP], "conditions": {"ready": True}}],
        },
    ]


def components(work: Path, binaries: dict[str, Path], programs: dict[str, str]) -> dict[str, list[str]]:
    """Component → argv, in the order in which they start."""
    pki, configs = work / "pki", work / "kubeconfigs"

    def client(name: str) -> str:
        return f"--kubeconfig={configs / name}"

    return {
        "etcd": [
            str(binaries["etcd"]),
            f"--data-dir={work / 'etcd'}",
            "--listen-client-urls=http://127.0.0.1:2379",
            "--advertise-client-urls=http://127.0.0.1:2379",
            "--listen-peer-urls=http://127.0.0.1:2380",
            "--unsafe-no-fsync",
            "--log-level=warn",
        ],
        "kube-apiserver": [
            str(binaries["kube-apiserver"]),
            "--etcd-servers=http://127.0.0.1:2379",
            f"--advertise-address={NODE_IP}",
            "--secure-port=6443",
            f"--client-ca-file={pki / 'ca.crt'}",
            f"--tls-cert-file={pki / 'serving.crt'}",
            f"--tls-private-key-file={pki / 'serving.key'}",
            f"--service-account-key-file={pki / 'accounts.pub'}",
            f"--service-account-signing-key-file={pki / 'accounts.key'}",
            "--service-account-issuer=https://kubernetes.default.svc.cluster.local",
            "--authorization-mode=Node,RBAC",
            "--enable-admission-plugins=NodeRestriction",
            f"--service-cluster-ip-range={SERVICE_RANGE}",
            "--kubelet-preferred-address-types=InternalIP",
            f"--kubelet-certificate-authority={pki / 'ca.crt'}",
            f"--kubelet-client-certificate={pki / 'apiserver-to-kubelet.crt'}",
            f"--kubelet-client-key={pki / 'apiserver-to-kubelet.key'}",
            "--allow-privileged=true",
            f"--audit-policy-file={work / 'audit-policy.json'}",
            f"--audit-log-path={work / 'audit.log'}",
            "--audit-log-mode=blocking",
            "--shutdown-delay-duration=0s",
            f"--cert-dir={work / 'apiserver'}",
        ],
        "containerd": [programs["containerd"], "--config", str(work / "containerd.toml")],
        "registry": [programs["docker-registry"], "serve", str(work / "registry.yml")],
        "kube-controller-manager": [
            str(binaries["kube-controller-manager"]),
            client("kube-controller-manager"),
            "--use-service-account-credentials",
            f"--root-ca-file={pki / 'ca.crt'}",
            f"--service-account-private-key-file={pki / 'accounts.key'}",
            f"--cluster-signing-cert-file={pki / 'ca.crt'}",
            f"--cluster-signing-key-file={pki / 'ca.key'}",
            "--leader-elect=false",
            "--node-monitor-period=2s",
            # Longer than any outage of a test: an elected one ends with its lease and begins to count anew, this one
            # would call the node dead, and its pods not ready, if it is back before the kubelet.
            "--node-monitor-grace-period=180s",
            "--bind-address=127.0.0.1",
            f"--cert-dir={work / 'kcm'}",
        ],
        "kube-scheduler": [
            str(binaries["kube-scheduler"]),
            client("kube-scheduler"),
            "--leader-elect=false",
            "--bind-address=127.0.0.1",
        ],
        "kubelet": [
            str(binaries["kubelet"]),
            client("kubelet"),
            f"--config={work / 'kubelet.json'}",
            f"--root-dir={work / 'kubelet'}",
            f"--hostname-override={NODE_NAME}",
            f"--node-ip={NODE_IP}",
        ],
        "kube-proxy": [
            str(binaries["kube-proxy"]),
            client("kube-proxy"),
            "--proxy-mode=iptables",
            f"--hostname-override={NODE_NAME}",
            f"--cluster-cidr={POD_RANGE}",
            "--iptables-min-sync-period=100ms",
            # Settings of the kernel's that a network namespace may not change.
            "--conntrack-max-per-core=0",
            "--conntrack-tcp-timeout-established=0",
            "--conntrack-tcp-timeout-close-wait=0",
        ],
        "coredns": [str(binaries["coredns"]), "-conf", str(work / "Corefile")],
    }
