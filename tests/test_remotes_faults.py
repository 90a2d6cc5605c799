"""Whatever a remote does, a build ends right: real servers, and a connection that goes wrong.

Machine A has built and pushed. Machine B has an empty store, and builds the same chain of steps
while the remote fails in one way or another. What is checked each time: every artifact is right to
the byte, the remote is named in a warning, and it was left alone after its first failure.
"""

from __future__ import annotations

import os
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from engine import docker_registry
from servers import Faults, Nginx, listens, nginx, small_disk
from sharing import RAN, RESTORED, SIZES, Machine, new_key

from tf2aif.remotes.keys import SigningKey
from tf2aif.workers import Workers

HERE = Path(__file__).parent
STALL_S = 0.5  # what a build may wait for an answer in these tests


@pytest.fixture(scope="module")
def key(tmp_path_factory: pytest.TempPathFactory) -> SigningKey:
    return new_key(tmp_path_factory.mktemp("key"))


@pytest.fixture(scope="module")
def workers() -> Iterator[Workers]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", f"{HERE}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
        with Workers() as workers:
            yield workers


@pytest.fixture
def machine(tmp_path: Path, workers: Workers, key: SigningKey) -> Callable[[str], Machine]:
    return lambda name: Machine(tmp_path / name, workers, [key.public])


@pytest.fixture(scope="module")
def full(
    tmp_path_factory: pytest.TempPathFactory, workers: Workers, key: SigningKey
) -> Iterator[Nginx]:
    """A web server that has all that machine A made."""
    folder = tmp_path_factory.mktemp("full")
    with nginx(folder / "nginx") as server:
        a = Machine(folder / "a", workers, [key.public])
        assert a.build(server.url, key=key) == RAN
        assert a.report.given == len(SIZES)
        assert a.report.warnings == ()
        yield server


@pytest.fixture
def faults(full: Nginx) -> Iterator[Faults]:
    """A connection to it."""
    connection = Faults(full.port)
    yield connection
    connection.close()


def test_nothing_goes_wrong(full: Nginx, machine: Callable[[str], Machine]) -> None:
    b = machine("b")
    assert b.build(full.url) == RESTORED
    assert b.report.taken == len(SIZES)
    assert b.report.warnings == ()
    assert not b.report.refused


def test_nothing_listens(machine: Callable[[str], Machine]) -> None:
    b = machine("b")
    assert b.build("http://127.0.0.1:9") == RAN
    assert len(b.report.warnings) == 1
    assert "not asked any more" in b.report.warnings[0]


def server_error(code: int) -> bytes:
    return b"HTTP/1.1 %d Broken\r\nContent-Length: 4\r\n\r\noops" % code


@pytest.mark.parametrize("code", [500, 503, 403, 301])
def test_an_answer_that_is_an_error(
    faults: Faults, machine: Callable[[str], Machine], code: int
) -> None:
    faults.answer = server_error(code)
    b = machine("b")
    assert b.build(f"http://{faults.address}") == RAN
    assert len(b.report.warnings) == 1
    assert faults.asked <= 3  # and not once for each step and file


@pytest.mark.parametrize(
    "answer",
    [b"SSH-2.0-OpenSSH_9.2\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: 999999999999\r\n\r\n", b""],
    ids=["ssh", "endless", "closed"],
)
def test_rubbish_for_an_answer(
    faults: Faults, machine: Callable[[str], Machine], answer: bytes
) -> None:
    faults.answer = answer
    b = machine("b")
    assert b.build(f"http://{faults.address}") == RAN
    assert len(b.report.warnings) == 1


@pytest.mark.parametrize("body", [b"<html>log in first</html>", b"{}", b"[" * 100_000, b"\xff"])
def test_pages_in_place_of_records(
    faults: Faults, machine: Callable[[str], Machine], body: bytes
) -> None:
    """As a captive portal answers: the remote is well, and has nothing that we believe."""
    faults.answer = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)
    b = machine("b")
    assert b.build(f"http://{faults.address}") == RAN
    assert b.report.refused == {"not a bundle of records": len(SIZES)}


@pytest.mark.parametrize("ahead", [False, True])
def test_a_stall(faults: Faults, machine: Callable[[str], Machine], ahead: bool) -> None:
    """Ten seconds without a byte; we wait for our own time-out, once."""
    faults.stall_s = 10
    b = machine("b")
    assert b.build(f"http://{faults.address}", timeout_s=STALL_S, ahead=ahead) == RAN
    assert len(b.report.warnings) == 1
    assert faults.asked == 1


def test_a_drip_that_never_times_out(faults: Faults, machine: Callable[[str], Machine]) -> None:
    """A byte now and then keeps a connection alive for hours; a whole answer has its own limit."""
    drip = threading.Event()

    def slowly(data: bytes, place: int) -> bytes | None:
        drip.wait(0.2)
        return data[:1]

    faults.down = slowly
    b = machine("b")
    assert b.build(f"http://{faults.address}", timeout_s=STALL_S) == RAN
    assert len(b.report.warnings) == 1
    drip.set()


def test_a_connection_that_breaks_is_taken_up_again(
    faults: Faults, machine: Callable[[str], Machine]
) -> None:
    """Of 3 MB one million come, then the rest is asked for."""
    cuts = iter([True])
    faults.down = lambda data, place: data if place < 1_000_000 or not next(cuts, False) else None
    b = machine("b")
    assert b.build(f"http://{faults.address}") == RESTORED
    assert b.report.warnings == ()
    assert next(cuts, None) is None  # it was cut


def test_a_connection_that_always_breaks(faults: Faults, machine: Callable[[str], Machine]) -> None:
    faults.down = lambda data, place: data if place < 100_000 else None
    b = machine("b")
    done = b.build(f"http://{faults.address}")
    assert done["import"] == "restored"  # it is small
    assert done["tflite"] == "ran"
    assert len(b.report.warnings) == 1


def test_flipped_bytes(faults: Faults, machine: Callable[[str], Machine]) -> None:
    """Somewhere in the large outputs; those steps run here, the remote is not left alone."""

    def flip(data: bytes, place: int) -> bytes:
        if not 300_000 < place < 600_000:
            return data
        return bytes([data[0] ^ 1]) + data[1:]

    faults.down = flip
    b = machine("b")
    done = b.build(f"http://{faults.address}")
    assert done["tflite"] == "ran"
    assert b.report.warnings == ()
    assert b.report.refused["with damaged bytes"] >= 1


def damage_largest(server: Nginx, change: Callable[[bytes], bytes]) -> tuple[Path, bytes]:
    path = max((server.files / "cas").iterdir(), key=lambda p: p.stat().st_size)
    right = path.read_bytes()
    path.write_bytes(change(right))
    return path, right


@pytest.mark.parametrize(
    "change",
    [
        lambda data: data[:-1] + bytes([data[-1] ^ 0x80]),
        lambda data: data[: len(data) // 2],
        lambda data: data + b"more",
        lambda data: b"",
    ],
    ids=["flipped", "truncated", "longer", "empty"],
)
def test_a_blob_that_is_damaged_on_the_server(
    full: Nginx,
    machine: Callable[[str], Machine],
    key: SigningKey,
    change: Callable[[bytes], bytes],
) -> None:
    """It is refused; who may write puts the right bytes there again."""
    path, right = damage_largest(full, change)
    try:
        b = machine("b")
        assert b.build(full.url) == {**RESTORED, "tflite": "ran"}
        assert b.report.refused == {"with damaged bytes": 1}
        assert path.read_bytes() == change(right)
        c = machine("c")
        assert c.build(full.url, key=key)["tflite"] == "ran"
        assert path.read_bytes() == right
        d = machine("d")
        assert d.build(full.url) == RESTORED
    finally:
        path.write_bytes(right)


def test_a_blob_that_is_gone(full: Nginx, machine: Callable[[str], Machine]) -> None:
    path, right = damage_largest(full, lambda data: data)
    path.unlink()
    try:
        b = machine("b")
        assert b.build(full.url) == {**RESTORED, "tflite": "ran"}
        assert b.report.refused == {"whose bytes are gone": 1}
    finally:
        path.write_bytes(right)


def test_the_server_is_killed_in_the_middle_of_a_get(
    machine: Callable[[str], Machine], key: SigningKey, tmp_path: Path
) -> None:
    with nginx(tmp_path / "nginx") as server:
        assert machine("a").build(server.url, key=key) == RAN
        faults = Faults(server.port)

        def kill(data: bytes, place: int) -> bytes:
            if place > 1_000_000:
                server.kill()
            return data

        faults.down = kill
        b = machine("b")
        done = b.build(f"http://{faults.address}")
        assert done["import"] == "restored"
        assert done["tflite"] == "ran"
        assert not listens(server.port)
        assert len(b.report.warnings) == 1
        server.start()
        faults.down = None
        assert machine("c").build(f"http://{faults.address}") == RESTORED
        faults.close()


def test_the_server_is_killed_in_the_middle_of_a_put(
    machine: Callable[[str], Machine], key: SigningKey, tmp_path: Path
) -> None:
    """No half blob is ever taken; the next who builds and may write completes it."""
    with nginx(tmp_path / "nginx") as server:
        faults = Faults(server.port)

        def kill(data: bytes, place: int) -> bytes:
            if place > 1_000_000:
                server.kill()
            return data

        faults.up = kill
        a = machine("a")
        assert a.build(f"http://{faults.address}", key=key) == RAN
        assert not listens(server.port)
        assert len(a.report.warnings) == 1
        faults.up = None
        server.start()
        b = machine("b")
        done = b.build(f"http://{faults.address}", key=key)
        assert done["tflite"] == "ran"
        assert b.report.warnings == ()
        assert not b.report.refused
        assert machine("c").build(f"http://{faults.address}") == RESTORED
        faults.close()


def test_the_servers_disk_is_full(
    machine: Callable[[str], Machine], key: SigningKey, tmp_path: Path
) -> None:
    """What fits is shared; when there is room again, the rest is."""
    with small_disk(tmp_path / "disk", 2_000) as disk, nginx(tmp_path / "nginx", disk) as server:
        a = machine("a")
        assert a.build(server.url, key=key) == RAN
        assert len(a.report.warnings) == 1
        assert "not written any more" in a.report.warnings[0]
        assert "disk full?" in a.report.warnings[0]
        b = machine("b")
        b.build(server.url)
        assert b.report.warnings == ()
        assert not b.report.refused
        subprocess.run(["mount", "-o", "remount,size=64m", disk], check=True)
        assert machine("c").build(server.url, key=key)["tflite"] == "ran"
        assert machine("d").build(server.url) == RESTORED


def test_the_registrys_disk_is_full(
    machine: Callable[[str], Machine], key: SigningKey, tmp_path: Path
) -> None:
    with small_disk(tmp_path / "disk", 2_000) as disk:
        with docker_registry(tmp_path / "registry", root=disk) as address:
            a = machine("a")
            assert a.build(f"oci://{address}/cache", key=key) == RAN
            assert len(a.report.warnings) == 1
            b = machine("b")
            b.build(f"oci://{address}/cache")
            assert not b.report.refused


def test_a_server_that_takes_nothing(
    machine: Callable[[str], Machine], key: SigningKey, tmp_path: Path
) -> None:
    with nginx(tmp_path / "nginx", write=False) as server:
        a = machine("a")
        assert a.build(server.url, key=key) == RAN
        assert len(a.report.warnings) == 1
        assert "405" in a.report.warnings[0]
        assert "not written any more" in a.report.warnings[0]


def test_a_stall_while_pushing(
    full: Nginx, machine: Callable[[str], Machine], key: SigningKey
) -> None:
    """The build is over long before the server takes anything."""
    held = threading.Event()

    def hold(data: bytes, place: int) -> bytes | None:
        if place > 300_000:
            held.wait(20)
        return data

    faults = Faults(full.port)
    faults.up = hold
    a = machine("a")
    assert a.build(f"http://{faults.address}", key=key, timeout_s=STALL_S, salt="new") == RAN
    assert a.report.warnings
    held.set()
    faults.close()


def test_the_store_here_is_full(
    full: Nginx, workers: Workers, key: SigningKey, tmp_path: Path
) -> None:
    """Then neither fetching nor running helps: the build says which disk it is."""
    from tf2aif.errors import Tf2aifError

    with small_disk(tmp_path / "disk", 1_500) as disk:
        b = Machine(tmp_path / "b", workers, [key.public])
        (tmp_path / "b").mkdir()
        (tmp_path / "b" / "store").symlink_to(disk)
        with pytest.raises(Tf2aifError, match="cannot be written: No space left"):
            b.build(full.url)
