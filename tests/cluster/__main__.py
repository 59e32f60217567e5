"""``python -m tests.cluster up|down|status|shell``: the cluster by hand, for looking and for repeated test runs."""

import argparse
import os
import subprocess
import sys

from . import binaries, packages
from .own import ClusterError, OwnCluster


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.cluster", description=__doc__)
    parser.add_argument("--name", help="which cluster (default: $GITSYNC_E2E_NAME or gitsync-e2e)")
    parser.add_argument("command", choices=["up", "down", "status", "shell", "prepare"])
    options = parser.parse_args()
    cluster = OwnCluster(options.name, keep=True)
    try:
        match options.command:
            case "prepare":
                packages.install()
                binaries.find(*binaries.NODE_SETS)
            case "up":
                cluster.up_or_remove()
                print(f"up after {cluster.timings} s; export KUBECONFIG={cluster.kubeconfig} in `shell`")
            case "down":
                if cluster.running:
                    cluster.attach()
                cluster.down()
            case "status":
                for name, state in cluster.attach().status().items():
                    print(f"{name:25} {'down' if not state['pid'] else 'up':5} started {state['starts']} times")
            case _:
                cluster.attach().enter()
                paths = [str(cluster.binary("kubectl").parent), os.environ.get("PATH", "")]
                environment = os.environ | cluster.container_environment()
                environment |= {"KUBECONFIG": str(cluster.kubeconfig), "PATH": os.pathsep.join(paths)}
                return subprocess.run([os.environ.get("SHELL", "/bin/sh")], env=environment).returncode
    except (ClusterError, binaries.BinaryError, packages.PackageError) as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
