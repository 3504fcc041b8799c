"""Create the cluster's certificate authority and its hosts' certificates, with openssl(1).

A host's certificate has no subject: etcd's gateway refuses certificates with a common name once
users are in use. Its addresses are therefore critical (RFC 5280, 4.2.1.6).
"""

from __future__ import annotations

import os
import subprocess
import tempfile
import time
from collections.abc import Sequence

from niso.base.errors import Error

DAYS = 3650
_EARLIER_S = 86400
"""Certificates are valid from yesterday, because clocks of hosts differ."""
AUTHORITY, CERTIFICATE, KEY = "authority.pem", "host.pem", "host.key"
AUTHORITY_KEY = "authority.key"
REFUSED_DAYS = 36500
_CURVE = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")
_OF_AUTHORITY = """\
[req]
distinguished_name = name
x509_extensions = authority
[name]
[authority]
basicConstraints = critical, CA:TRUE, pathlen:0
keyUsage = critical, keyCertSign, cRLSign
subjectKeyIdentifier = hash
"""
_OF_HOST = """\
[host]
basicConstraints = critical, CA:FALSE
keyUsage = critical, digitalSignature
extendedKeyUsage = serverAuth, clientAuth
subjectAltName = critical, {names}
subjectKeyIdentifier = hash
authorityKeyIdentifier = keyid
"""


_OF_REFUSAL = """\
[ca]
default_ca = list
[list]
database = {index}
default_md = sha256
"""


def make_authority(folder: str, cluster: str) -> None:
    """Create a cluster's authority in an existing folder: certificate and key, valid for 10 years.

    Raises Error.
    """
    _run(
        *("req", "-x509", *_CURVE, *_period(), "-config", "/dev/stdin"),
        *("-subj", f"/O=niso/CN=cluster {cluster}"),
        *("-keyout", os.path.join(folder, AUTHORITY_KEY)),
        *("-out", os.path.join(folder, AUTHORITY)),
        text=_OF_AUTHORITY,
    )


def issue(authority: str, folder: str, addresses: Sequence[str]) -> None:
    """Create a host's certificate and key in an existing folder, signed by ``authority``'s key.

    ``authority`` is the folder of the authority. The certificate is valid for these addresses and
    localhost, as server and client. Raises Error.
    """
    names = [f"IP:{address}" for address in (*addresses, "127.0.0.1", "::1")]
    key, request = os.path.join(folder, KEY), os.path.join(folder, "host.csr")
    _run(*("req", "-new", *_CURVE, "-subj", "/", "-keyout", key, "-out", request))
    try:
        _run(
            *("x509", "-req", "-in", request, *_period()),
            *("-CA", os.path.join(authority, AUTHORITY)),
            *("-CAkey", os.path.join(authority, AUTHORITY_KEY)),
            *("-extfile", "/dev/stdin", "-extensions", "host"),
            *("-out", os.path.join(folder, CERTIFICATE)),
            text=_OF_HOST.format(names=", ".join(names)),
        )
    finally:
        os.unlink(request)


def serial(path: str) -> str:
    """Return the serial number of a certificate file, as hexadecimal digits. Raises Error."""
    return _run("x509", "-in", path, "-noout", "-serial").strip().rpartition("=")[2]


def refusal(authority: str, serials: Sequence[str]) -> bytes:
    """Return a certificate revocation list in PEM (RFC 5280, 5) with these serial numbers.

    It is signed by the authority in the folder ``authority``. Raises Error.
    """
    with tempfile.TemporaryDirectory(dir=authority, prefix="new-") as folder:
        index = os.path.join(folder, "index")
        with open(index, "w", encoding="ascii") as file:  # the columns of openssl-ca(1)
            end, since = "491231235959Z", "000101000000Z"
            file.writelines(f"R\t{end}\t{since}\t{serial}\tunknown\t/\n" for serial in serials)
        made = os.path.join(folder, "list")
        _run(
            *("ca", "-gencrl", "-config", "/dev/stdin", "-crldays", str(REFUSED_DAYS)),
            *("-cert", os.path.join(authority, AUTHORITY)),
            *("-keyfile", os.path.join(authority, AUTHORITY_KEY)),
            *("-out", made),
            text=_OF_REFUSAL.format(index=index),
        )
        with open(made, "rb") as file:
            return file.read()


def _period() -> tuple[str, ...]:
    """Return openssl's options for the validity period of a certificate (UTC)."""
    now = time.time()
    ends = (now - _EARLIER_S, now + DAYS * 86400)
    start, end = (time.strftime("%Y%m%d%H%M%SZ", time.gmtime(end_s)) for end_s in ends)
    return "-not_before", start, "-not_after", end


def _run(*words: str, text: str = "") -> str:
    """Run openssl and return its output. Raises Error.

    Keys that openssl writes are readable by the caller only.
    """
    try:
        done = subprocess.run(
            ["openssl", *words],
            input=text,
            capture_output=True,
            text=True,
            check=False,
            umask=0o077,
        )
    except FileNotFoundError:
        raise Error("openssl is missing", "apt-get install openssl") from None
    if done.returncode:
        said = done.stderr.strip().splitlines() or [f"ended with {done.returncode}"]
        raise Error(f"openssl {words[0]}: {said[-1]}")
    return done.stdout
