"""The cluster's certificate authority and what it signs, by ``openssl``. Keys never leave the work directory."""

import base64
import subprocess
from pathlib import Path

from . import configuration
from .packages import program


def make(directory: Path, *, addresses: list[str], names: list[str]) -> None:
    """CA, serving certificate for the given addresses and names, one client per identity, service account key."""
    directory.mkdir(mode=0o700)
    _issue(directory, "ca", "/CN=e2e-ca", ["basicConstraints=critical,CA:TRUE", "keyUsage=critical,keyCertSign"])
    alternatives = ",".join([f"IP:{each}" for each in addresses] + [f"DNS:{each}" for each in names])
    _issue(directory, "serving", "/CN=e2e-serving", [f"subjectAltName={alternatives}"], signed=True)
    for identity in configuration.IDENTITIES:
        subject = (f"/O={identity.group}" if identity.group else "") + f"/CN={identity.user}"
        _issue(directory, identity.name, subject, ["extendedKeyUsage=clientAuth"], signed=True)
    private, public = f"{directory}/accounts.key", f"{directory}/accounts.pub"
    _openssl("genpkey", "-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256", "-out", private)
    _openssl("pkey", "-in", private, "-pubout", "-out", public)


def kubeconfig(directory: Path, name: str) -> str:
    def encoded(file: str) -> str:
        return base64.b64encode((directory / file).read_bytes()).decode()

    return configuration.kubeconfig(
        ca=encoded("ca.crt"), certificate=encoded(f"{name}.crt"), key=encoded(f"{name}.key")
    )


def _issue(directory: Path, name: str, subject: str, extensions: list[str], *, signed: bool = False) -> None:
    arguments = ["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-noenc", "-days", "3650"]
    arguments += ["-subj", subject, "-keyout", f"{directory}/{name}.key", "-out", f"{directory}/{name}.crt"]
    if signed:
        arguments += ["-CA", f"{directory}/ca.crt", "-CAkey", f"{directory}/ca.key"]
        extensions = ["basicConstraints=critical,CA:FALSE", *extensions]
    # A configuration without the default extensions: openssl would otherwise make each certificate an authority.
    configuration_file = directory / "openssl.cnf"
    configuration_file.write_text("[req]\ndistinguished_name=name\n[name]\n")
    arguments += ["-config", str(configuration_file)]
    for each in extensions:
        arguments += ["-addext", each]
    _openssl(*arguments)


def _openssl(*arguments: str) -> None:
    done = subprocess.run([program("openssl"), *arguments], capture_output=True, text=True, timeout=60)
    if done.returncode:
        raise RuntimeError(f"openssl {' '.join(arguments[:2])} failed: {done.stderr.strip()}")
