"""``python -m tests.tools``: what ``make test`` and ``make demo`` need of the system; installed where we may.

The packages of the Kubernetes tests are more; ``make e2e`` looks after those itself.
"""

import sys

from tests.cluster.packages import PROGRAMS, PackageError, install

NEEDED = ("buildah", "busybox", "docker-registry", "git", "node", "podman", "runc", "skopeo")


def main() -> int:
    try:
        install({name: PROGRAMS[name] for name in NEEDED} | {"kubectl": "kubernetes-client"})
    except PackageError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
