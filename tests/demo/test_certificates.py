from __future__ import annotations

import shutil
import socket
import ssl
import stat
import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509

from wsrouter.demo import certificates as module
from wsrouter.demo.certificates import LIFETIME, RENEW_BEFORE, DemoCertificates

NAMES = ("localhost", "passthrough.localhost")


@pytest.fixture
def now() -> datetime:
    return datetime.now(UTC)


def handshake(certificates: DemoCertificates, served: str, asked: str) -> None:
    """A real TLS handshake, verified by a client that trusts the demonstration CA only."""
    server_context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server_context.load_cert_chain(certificates.file_for(served))
    client_context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    client_context.verify_flags |= ssl.VERIFY_X509_STRICT
    client_context.load_verify_locations(certificates.ca)
    near, far = socket.socketpair()
    with near, far:

        def serve() -> None:
            try:
                server_context.wrap_socket(far, server_side=True).close()
            except OSError:
                far.close()

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            client_context.wrap_socket(near, server_hostname=asked).close()
        finally:
            near.close()
            thread.join()


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.mark.parametrize("served", NAMES)
def test_a_client_that_trusts_the_ca_accepts_each_name(tmp_path: Path, now: datetime, served: str) -> None:
    handshake(DemoCertificates.load(NAMES, tmp_path, now=now), served, served)


@pytest.mark.parametrize("address", ["127.0.0.1", "::1"])
def test_localhost_is_good_for_the_loopback_addresses(tmp_path: Path, now: datetime, address: str) -> None:
    handshake(DemoCertificates.load(NAMES, tmp_path, now=now), "localhost", address)


def test_a_wildcard_is_good_for_names_under_it(tmp_path: Path, now: datetime) -> None:
    handshake(DemoCertificates.load(["*.demo.localhost"], tmp_path, now=now), "*.demo.localhost", "a.demo.localhost")


def test_one_name_does_not_serve_for_another(tmp_path: Path, now: datetime) -> None:
    certificates = DemoCertificates.load(NAMES, tmp_path, now=now)
    with pytest.raises(ssl.SSLCertVerificationError):
        handshake(certificates, "localhost", "passthrough.localhost")


def test_the_ca_is_held_to_its_names_and_its_key_is_kept_nowhere(tmp_path: Path, now: datetime) -> None:
    certificates = DemoCertificates.load(NAMES, tmp_path, now=now)
    ca = x509.load_pem_x509_certificate(certificates.ca.read_bytes())
    constraints = ca.extensions.get_extension_for_class(x509.NameConstraints)
    assert constraints.critical
    permitted = constraints.value.permitted_subtrees or []
    assert {str(name.value) for name in permitted} == {*NAMES, "127.0.0.1/32", "::1/128"}
    assert {path.name for path in tmp_path.iterdir()} == {
        "ca.pem",
        "server-localhost.pem",
        "server-passthrough.localhost.pem",
    }
    assert b"PRIVATE KEY" not in certificates.ca.read_bytes()


def test_files_and_folder_are_private(tmp_path: Path, now: datetime) -> None:
    folder = tmp_path / "cache"
    certificates = DemoCertificates.load(NAMES, folder, now=now)
    assert mode(folder) == 0o700
    assert [mode(certificates.file_for(name)) for name in NAMES] == [0o600, 0o600]


def test_a_restart_uses_the_files_again(tmp_path: Path, now: datetime) -> None:
    first = DemoCertificates.load(NAMES, tmp_path, now=now)
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    again = DemoCertificates.load(NAMES, tmp_path, now=now + LIFETIME - RENEW_BEFORE - timedelta(minutes=1))
    assert again == first
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_fewer_names_use_the_files_again(tmp_path: Path, now: datetime) -> None:
    before = DemoCertificates.load(NAMES, tmp_path, now=now).ca.read_bytes()
    assert DemoCertificates.load(NAMES[:1], tmp_path, now=now).ca.read_bytes() == before


def test_a_week_before_the_end_all_are_made_anew(tmp_path: Path, now: datetime) -> None:
    before = DemoCertificates.load(NAMES, tmp_path, now=now).ca.read_bytes()
    later = DemoCertificates.load(NAMES, tmp_path, now=now + LIFETIME - RENEW_BEFORE + timedelta(minutes=1))
    assert later.ca.read_bytes() != before


def test_a_clock_before_their_time_makes_them_anew(tmp_path: Path, now: datetime) -> None:
    before = DemoCertificates.load(NAMES, tmp_path, now=now).ca.read_bytes()
    assert DemoCertificates.load(NAMES, tmp_path, now=now - timedelta(days=1)).ca.read_bytes() != before


def test_a_new_name_makes_a_new_ca_and_all_certificates_anew(tmp_path: Path, now: datetime) -> None:
    before = DemoCertificates.load(NAMES, tmp_path, now=now).ca.read_bytes()
    more = DemoCertificates.load([*NAMES, "new.localhost"], tmp_path, now=now)
    assert more.ca.read_bytes() != before
    for name in (*NAMES, "new.localhost"):
        handshake(more, name, name)


def spoil_with_garbage(certificates: DemoCertificates, other: Path) -> None:
    certificates.file_for("localhost").write_bytes(b"garbage")


def spoil_by_removing(certificates: DemoCertificates, other: Path) -> None:
    certificates.file_for("localhost").unlink()


def spoil_with_another_ca(certificates: DemoCertificates, other: Path) -> None:
    shutil.copy(other / "ca.pem", certificates.ca)


def spoil_with_another_key(certificates: DemoCertificates, other: Path) -> None:
    file = certificates.file_for("localhost")
    certificate = file.read_bytes().partition(b"-----BEGIN CERTIFICATE")
    foreign_key = (other / file.name).read_bytes().partition(b"-----BEGIN CERTIFICATE")[0]
    file.write_bytes(foreign_key + certificate[1] + certificate[2])


def spoil_with_another_name(certificates: DemoCertificates, other: Path) -> None:
    shutil.copy(certificates.file_for("passthrough.localhost"), certificates.file_for("localhost"))


def spoil_with_open_modes(certificates: DemoCertificates, other: Path) -> None:
    certificates.file_for("localhost").chmod(0o644)


@pytest.mark.parametrize(
    "spoil",
    [
        spoil_with_garbage,
        spoil_by_removing,
        spoil_with_another_ca,
        spoil_with_another_key,
        spoil_with_another_name,
        spoil_with_open_modes,
    ],
)
def test_a_spoilt_cache_is_made_anew(tmp_path: Path, now: datetime, spoil) -> None:
    first, other = tmp_path / "first", tmp_path / "other"
    DemoCertificates.load(NAMES, other, now=now)
    spoil(DemoCertificates.load(NAMES, first, now=now), other)
    mended = DemoCertificates.load(NAMES, first, now=now)
    assert not mended.temporary
    assert mode(mended.file_for("localhost")) == 0o600
    for name in NAMES:
        handshake(mended, name, name)


def test_routers_that_start_together_never_mix_their_files(tmp_path: Path, now: datetime) -> None:
    sets = [["localhost", f"n{number}.localhost"] for number in range(4)] * 2
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda names: DemoCertificates.load(names, tmp_path, now=now), sets))
    before = (tmp_path / "ca.pem").read_bytes()
    last = DemoCertificates.load(["localhost"], tmp_path, now=now)
    assert last.ca.read_bytes() == before
    handshake(last, "localhost", "localhost")


def test_a_folder_that_cannot_be_written_is_replaced_by_a_temporary_one(tmp_path: Path, now: datetime) -> None:
    (tmp_path / "file").write_text("no folder")
    certificates = DemoCertificates.load(NAMES, tmp_path / "file" / "cache", now=now)
    assert certificates.temporary
    assert mode(certificates.folder) == 0o700
    handshake(certificates, "localhost", "localhost")
    certificates.cleanup()
    certificates.cleanup()
    assert not certificates.folder.exists()


def test_a_write_that_fails_leaves_no_half_file_behind(
    tmp_path: Path, now: datetime, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = module.os.replace

    def refuse_in_cache(source: str, target: Path) -> None:
        if target.parent == tmp_path:
            raise OSError("no space left")
        real(source, target)

    monkeypatch.setattr(module.os, "replace", refuse_in_cache)
    certificates = DemoCertificates.load(NAMES, tmp_path, now=now)
    assert certificates.temporary
    assert list(tmp_path.iterdir()) == []
    certificates.cleanup()


def test_cleanup_leaves_a_cache_folder_alone(tmp_path: Path, now: datetime) -> None:
    certificates = DemoCertificates.load(NAMES, tmp_path, now=now)
    certificates.cleanup()
    assert certificates.ca.exists()


def test_the_cache_lies_where_xdg_says(tmp_path: Path, now: datetime, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert DemoCertificates.load(NAMES, now=now).folder == tmp_path / "wsrouter" / "demo"


@pytest.mark.parametrize("value", ["", "relative/folder"])
def test_without_a_usable_xdg_setting_the_cache_lies_at_home(
    tmp_path: Path, now: datetime, monkeypatch: pytest.MonkeyPatch, value: str
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", value)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert DemoCertificates.load(NAMES, now=now).folder == tmp_path / ".cache" / "wsrouter" / "demo"


def test_a_user_without_a_home_gets_a_temporary_folder(now: datetime, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_home() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(Path, "home", no_home)
    certificates = DemoCertificates.load(NAMES, now=now)
    assert certificates.temporary
    certificates.cleanup()


@pytest.mark.parametrize("name", ["", "a/b", "../x", "Upper", "a b", "a..b", "a.*.b", "x" * 254, "ä.localhost"])
def test_what_is_no_host_name_is_refused(tmp_path: Path, now: datetime, name: str) -> None:
    with pytest.raises(ValueError, match="host name"):
        DemoCertificates.load([name], tmp_path, now=now)


def test_a_name_that_was_not_asked_for_has_no_file(tmp_path: Path, now: datetime) -> None:
    with pytest.raises(KeyError):
        DemoCertificates.load(NAMES, tmp_path, now=now).file_for("other")
