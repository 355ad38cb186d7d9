"""Kinds of a failure to connect."""

import errno
import socket
import ssl

import pytest

from proxy.gateway.upstream.interruption import connect_cause
from proxy.observability.metrics import CONNECT_CAUSES


@pytest.mark.parametrize(
    ("error", "cause"),
    [
        (socket.gaierror(-2, "Name or service not known"), "dns"),
        (ConnectionRefusedError(errno.ECONNREFUSED, "refused"), "refused"),
        (ConnectionResetError(errno.ECONNRESET, "reset"), "reset"),
        (ssl.SSLCertVerificationError(1, "certificate verify failed"), "tls"),
        (ssl.SSLError(1, "wrong version number"), "tls"),
        (TimeoutError(), "timeout"),
        (TimeoutError(errno.ETIMEDOUT, "timed out"), "timeout"),
        (OSError(errno.EHOSTUNREACH, "no route"), "unreachable"),
        (OSError(errno.ENETUNREACH, "no network"), "unreachable"),
        (OSError(errno.EMFILE, "too many files"), "local"),
        (OSError(errno.EADDRNOTAVAIL, "no port left"), "local"),
        (PermissionError(errno.EACCES, "no"), "local"),
        (OSError("multiple exceptions"), "other"),
        (ValueError("what else"), "other"),
    ],
    ids=repr,
)
def test_each_failure_has_its_word(error: Exception, cause: str) -> None:
    assert connect_cause(error) == cause
    assert cause in CONNECT_CAUSES
