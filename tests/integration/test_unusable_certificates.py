"""Certificates that cannot be used refuse the start, each with one line that says where and why."""

from __future__ import annotations

import re

import pytest
import trustme
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    PrivateFormat,
    load_pem_private_key,
)

from tests.integration.process import run
from wsrouter.errors import ConfigError


def split(pem: bytes) -> tuple[bytes, bytes]:
    """Key and chain of a PEM file."""
    found = re.findall(rb"-----BEGIN [A-Z ]+-----.*?-----END [A-Z ]+-----\n", pem, re.DOTALL)
    return next(one for one in found if b"PRIVATE" in one), b"".join(one for one in found if b"PRIVATE" not in one)


def locked(key: bytes) -> bytes:
    """A key with a pass phrase."""
    loaded = load_pem_private_key(key, None)
    return loaded.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"secret"))


FAULTS = {
    "no key": (lambda key, chain, other: chain, "holds no private key"),
    "no certificate": (lambda key, chain, other: key, "holds no certificate"),
    "a key of another": (lambda key, chain, other: other + chain, "does not belong to the certificate"),
    "garbage": (lambda key, chain, other: b"garbage", "holds no certificate"),
    "a cut certificate": (
        lambda key, chain, other: key + b"-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----\n",
        "malformed certificate",
    ),
    "a pass phrase": (lambda key, chain, other: locked(key) + chain, "has a pass phrase"),
    "an empty file": (lambda key, chain, other: b"", "holds no certificate"),
}


@pytest.mark.parametrize("where", ["certificates", "default_certificate", "file", "tls_certificate"])
@pytest.mark.parametrize(("make", "reason"), FAULTS.values(), ids=FAULTS.keys())
def test_a_certificate_that_cannot_be_used_refuses_the_start(router, authority, where, make, reason) -> None:
    key, chain = split(authority.issue("a.example"))
    other, _ = split(authority.issue("b.example"))
    assert_refused(router, where, {"bad.pem": make(key, chain, other)}, reason)


def test_a_certificate_that_is_not_there_refuses_the_start(router) -> None:
    for where in ("certificates", "default_certificate", "file", "tls_certificate", "client_ca", "tls_ca"):
        assert_refused(router, where, {}, "bad.pem")


@pytest.mark.parametrize("where", ["certificates", "default_certificate", "file", "client_ca", "tls_ca"])
def test_a_folder_in_the_place_of_a_certificate_refuses_the_start(router, where) -> None:
    assert_refused(router, where, {"bad.pem/inside": b""}, "bad.pem")


@pytest.mark.parametrize("where", ["client_ca", "tls_ca"])
def test_a_ca_that_cannot_be_used_refuses_the_start(router, where) -> None:
    assert_refused(router, where, {"bad.pem": b"garbage"}, "holds no certificate")


def assert_refused(router, where: str, files: dict[str, bytes], reason: str) -> None:
    """One line that names the configuration, the place in it, the file, and the reason; and nothing is bound."""
    good = trustme.CA().issue_cert("good.example").private_key_and_cert_chain_pem.bytes()
    listener = f"{where} = bad.pem" if where in ("certificates", "default_certificate") else "certificates = good.pem"
    section = {
        "file": "[certificate app]\nfile = bad.pem",
        "client_ca": "[certificate app]\nfile = good.pem\nclient_ca = bad.pem\nclient_auth = required",
    }.get(where, "")
    pool = f"tls = yes\n{where} = bad.pem" if where.startswith("tls_") else ""
    text = (
        f"[listener main]\nendpoint = tcp:0:interface=127.0.0.1\n{listener}\n{section}\n"
        f"[route all]\npool = app\n[pool app]\nbackends = 127.0.0.1:1\n{pool}\n"
    )
    with pytest.raises(ConfigError) as caught:
        router(text, files={"good.pem": good, **files})
    (fault,) = caught.value.faults
    assert "router.ini:" in fault
    assert where in fault
    assert "bad.pem" in fault
    assert reason in fault
    assert "\n" not in fault


def test_every_certificate_that_cannot_be_used_is_told_at_once(router) -> None:
    with pytest.raises(ConfigError) as caught:
        router(
            "[listener main]\nendpoint = tcp:0:interface=127.0.0.1\ncertificates = one.pem\n"
            "[listener more]\nendpoint = tcp:0:interface=127.0.0.1\ncertificates = two.pem\n"
            "[route all]\npool = app\n[pool app]\nbackends = 127.0.0.1:1\ntls = yes\ntls_ca = three.pem\n",
            files={"one.pem": b"garbage", "two.pem": b"garbage", "three.pem": b"garbage"},
        )
    told = caught.value.faults
    assert len(told) == 3
    assert {name for name in ("one.pem", "two.pem", "three.pem") for line in told if name in line} == {
        "one.pem",
        "two.pem",
        "three.pem",
    }


@pytest.mark.parametrize("check", [(), ("--check",)], ids=["start", "check"])
def test_twistd_tells_it_in_one_line_and_fails(tmp_path, check) -> None:
    (tmp_path / "bad.pem").write_text("garbage")
    config = tmp_path / "router.ini"
    config.write_text(
        "[listener main]\nendpoint = tcp:0:interface=127.0.0.1\ncertificates = bad.pem\n"
        "[route all]\nredirect = https://elsewhere.example/\n"
    )
    done = run(tmp_path, "--config", str(config), *check)
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"{config}:")
    assert line.endswith("bad.pem: holds no certificate (expected PEM, BEGIN CERTIFICATE)")
    assert "Traceback" not in done.stdout
