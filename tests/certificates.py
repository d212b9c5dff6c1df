"""Certificates for tests, made by the openssl command: an authority and what it signs."""

from __future__ import annotations

import datetime
import subprocess
from pathlib import Path

_CONFIG = """
[ca]
default_ca = own
[own]
database = {folder}/index
new_certs_dir = {folder}
rand_serial = yes
default_md = sha256
policy = any
unique_subject = no
copy_extensions = copy
x509_extensions = issued
email_in_dn = yes
[issued]
authorityKeyIdentifier = keyid
subjectKeyIdentifier = hash
basicConstraints = CA:FALSE
[any]
countryName = optional
organizationName = optional
organizationalUnitName = optional
commonName = optional
emailAddress = optional
"""


def openssl(*args: object) -> str:
    done = subprocess.run(["openssl", *map(str, args)], capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


class Pair:
    """The files of a certificate and its key."""

    def __init__(self, certificate: Path, key: Path) -> None:
        self.certificate = certificate
        self.key = key

    @property
    def options(self) -> dict[str, str]:
        return {"ssl_certfile": str(self.certificate), "ssl_keyfile": str(self.key)}

    @property
    def flags(self) -> list[str]:
        return ["--ssl-certfile", str(self.certificate), "--ssl-keyfile", str(self.key)]

    def put(self, folder: Path, stem: str = "tls") -> Pair:
        """A copy as `stem`.crt and `stem`.key, written over what is there."""
        folder.mkdir(parents=True, exist_ok=True)
        copy = Pair(folder / f"{stem}.crt", folder / f"{stem}.key")
        copy.certificate.write_bytes(self.certificate.read_bytes())
        copy.key.write_bytes(self.key.read_bytes())
        return copy


class Authority:
    """A CA in `folder`; `certificate` is its own."""

    def __init__(self, folder: Path, name: str = "test CA") -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "index").touch()
        (folder / "ca.cnf").write_text(_CONFIG.format(folder=folder))
        self.certificate, self._key = folder / "ca.pem", folder / "ca.key"
        openssl(
            "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-subj", f"/CN={name}",
            "-addext", "keyUsage = critical, keyCertSign, cRLSign",  # Python 3.13 wants it (RFC 5280 4.2.1.3)
            "-days", 3650, "-keyout", self._key, "-out", self.certificate,
        )  # fmt: skip

    def issue(
        self, *names: str, subject: str = "", begins: float = -1, days: float = 365, key_type: str = "ec"
    ) -> Pair:
        """A certificate for DNS names and addresses; valid from `begins` days from now, for `days`."""
        stem = f"{len(list(self.folder.glob('*.csr')))}-{(names or ('client',))[0].replace('*', '_')}"
        certificate, key, request = (self.folder / f"{stem}{ending}" for ending in (".crt", ".key", ".csr"))
        kinds = {"ec": ("ec", "-pkeyopt", "ec_paramgen_curve:P-256"), "rsa": ("rsa:2048",)}
        command = ["req", "-new", "-newkey", *kinds[key_type], "-nodes", "-subj", subject or f"/CN={names[0]}"]
        if names:
            alternatives = (f"IP:{name}" if name.replace(".", "").isdigit() else f"DNS:{name}" for name in names)
            command += ["-addext", f"subjectAltName={','.join(alternatives)}"]
        openssl(*command, "-utf8", "-keyout", key, "-out", request)
        now = datetime.datetime.now(datetime.UTC)
        start, end = (f"{now + datetime.timedelta(days=offset):%Y%m%d%H%M%SZ}" for offset in (begins, begins + days))
        openssl(
            "ca", "-batch", "-notext", "-config", self.folder / "ca.cnf", "-cert", self.certificate,
            "-keyfile", self._key, "-startdate", start, "-enddate", end,
            "-in", request, "-out", certificate,
            "-utf8", "-preserveDN",
        )  # fmt: skip
        return Pair(certificate, key)
