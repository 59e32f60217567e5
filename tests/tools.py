"""``python -m tests.tools [demo]``: what ``make test`` and ``make demo`` need of the system; installed where we may.

The demo goes on without: other programs may do (docker), and it says itself what it cannot do without. The packages of
the Kubernetes tests are more; ``make e2e`` looks after those itself.
"""

import sys

from tests.cluster.packages import PROGRAMS, PackageError, install

DEMO = ("buildah", "busybox", "docker-registry", "git", "ip", "node", "podman", "runc", "slirp4netns")
NEEDED = (*DEMO, "chromium", "openssl", "skopeo")


def main(demo: bool) -> int:
    try:
        install({name: PROGRAMS[name] for name in (DEMO if demo else NEEDED)})
    except PackageError as error:
        print(error, file=sys.stderr)
        return 0 if demo else 1
    return 0


if __name__ == "__main__":
    sys.exit(main("demo" in sys.argv[1:]))
