"""A build farm: real schedulers and machines on 127.0.0.1, a toy step, and what must be refused."""

from __future__ import annotations

import io
import json
import os
import pickle
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from farms import TestBuild, TestFarm, content, plain_environment, step
from processes import until
from sharing import new_key

pytest.importorskip("distributed", reason="needs 'tf2aif[farm]'")

import tf2aif
from tf2aif.errors import StepFailed, Tf2aifError
from tf2aif.execute import bring_up_to_date
from tf2aif.facts import key as key_of
from tf2aif.farm.address import Address, is_loopback, parse
from tf2aif.farm.errand import Errand, Refused, make_errand, outside, read_errand
from tf2aif.farm.farm import Farm
from tf2aif.farm.keys import make_keys
from tf2aif.farm.offer import Offer, bids, label_of, make_offer
from tf2aif.farm.pickles import AnswerUnpickler, Unknown, Unpickler
from tf2aif.farm.seats import Seats
from tf2aif.farm.source import has_changed, version
from tf2aif.freshness import declared
from tf2aif.graph import Step
from tf2aif.remotes.remote import action_name
from tf2aif.spec.target import Limits
from tf2aif.store import Store
from tf2aif.toolchains import Identity, Missing, identity
from tf2aif.workers import Workers
from tf2aif.workspace import Workspace


@pytest.fixture(scope="module", autouse=True)
def _plain_environment() -> Iterator[None]:
    with plain_environment():
        yield


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("certificates")
    make_keys(folder)
    return folder


@pytest.fixture(scope="module")
def farm(tmp_path_factory: pytest.TempPathFactory, certificates: Path) -> Iterator[TestFarm]:
    """Two machines with the same toolchain, of which beta runs recipes' own code too; a rogue."""
    farm = TestFarm(tmp_path_factory.mktemp("farm"), tls=certificates)
    try:
        farm.add("alpha", "--slots", "2", wait=False)
        farm.add("beta", "--slots", "2", "--allow-code", wait=False)
        farm.add("rogue", "--rogue", "--offer", "pof2", wait=False)
        for name in ("alpha", "beta", "rogue"):
            farm.wait_for(name)
        yield farm
    finally:
        farm.close()


@pytest.fixture
def build(farm: TestFarm, request: pytest.FixtureRequest) -> Iterator[TestBuild]:
    """A build of this test's own."""
    with farm.build(request.node.name) as build:
        yield build


# Steps that are done.


def test_a_chain_is_made_as_it_is_here(
    build: TestBuild, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))
    first = step("chain-a", build.folder, size=40_000)
    second = step("chain-b", build.folder, after=first)
    results = [build.run(first), build.run(second)]
    assert [result.done for result in results] == ["ran", "ran"]
    assert {result.machine for result in results} <= {"alpha", "beta"}
    here = Workspace(tmp_path / "here")
    here.__dict__["store"] = Store(tmp_path / "store")
    with Workers() as workers:
        for one in (first, second):
            bring_up_to_date(one, here, workers)
    for one in (first, second):
        mine, theirs = here.made(one), build.space.made(one)
        assert mine is not None
        assert theirs is not None
        assert (mine.key, mine.outputs, mine.folders) == (
            theirs.key,
            theirs.outputs,
            theirs.folders,
        )
        assert mine.result == theirs.result
        assert (build.space.artifact(one) / "empty").is_dir()
    assert build.content(second) == here_content(here, second)
    assert build.run(second).done == "fresh"


def here_content(space: Workspace, one: Step) -> bytes:
    return (space.artifact(one) / "model.tflite").read_bytes()


def test_the_record_says_which_machine_made_it(build: TestBuild) -> None:
    one = step("record", build.folder)
    machine = build.run(one).machine
    made = build.space.made(one)
    assert made is not None
    assert isinstance(made.made_by, dict)
    assert made.made_by["machine.name"] == machine
    assert made.made_by["toolchain.platform"] == made.facts["toolchain.platform"]
    assert made.made_by["machine.cpu"]


def test_a_step_that_two_builds_want_runs_once(farm: TestFarm, build: TestBuild) -> None:
    one = step("twice", build.folder, sleep_s=1.0)
    with farm.build("other-checkout") as other:
        import threading

        found: list[Any] = []
        threads = [
            threading.Thread(target=lambda b=b: found.append(b.run(one))) for b in (build, other)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(found) == 2
        assert build.content(one) == other.content(one) == content("twice")
    assert farm.runs("twice") == 1


def test_what_was_made_before_is_found_and_not_made_again(farm: TestFarm, build: TestBuild) -> None:
    one = step("found", build.folder)
    assert build.run(one).done == "ran"
    with farm.build("later-checkout") as later:
        assert later.run(one).done == "restored"
        assert later.content(one) == content("found")
    assert farm.runs("found") == 1


def test_the_log_comes_while_the_step_runs(build: TestBuild) -> None:
    import threading

    one = step("log", build.folder, sleep_s=2.0)
    thread = threading.Thread(target=build.run, args=(one,))
    thread.start()
    log, until = build.space.log(one), time.monotonic() + 60
    while not (log.exists() and "log begins" in log.read_text()):
        assert time.monotonic() < until
        time.sleep(0.05)
    assert thread.is_alive()
    thread.join()
    assert log.read_text() == "log begins\n"


def test_user_code_and_variables_go_to_a_machine_that_allows_them(
    build: TestBuild, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TF_FARM_TEST", "7")
    one = step("variable", build.folder)
    assert build.run(one).machine == "beta"
    made = build.space.made(one)
    assert made is not None
    assert made.result["variable"] == "7"
    assert made.facts["environment.TF_FARM_TEST"] == "7"


# Steps that fail.


def test_a_failure_is_told_as_one_here_and_of_which_machine(build: TestBuild) -> None:
    one = step("fails", build.folder, deed="fail")
    with pytest.raises(StepFailed) as failed:
        build.run(one)
    text = failed.value.render()
    assert "m/fails: operator FOO is not supported (on " in text
    assert " hint: leave it out" in text
    assert f"log: {build.space.log(one)}" in text


def test_a_crash_shows_the_end_of_the_log(build: TestBuild) -> None:
    with pytest.raises(StepFailed, match=r"SIGSEGV(?s:.*)\| crash begins"):
        build.run(step("crash", build.folder, deed="crash"))


def test_a_step_keeps_to_its_time(farm: TestFarm, build: TestBuild) -> None:
    one = step("slow", build.folder, sleep_s=60.0, limits=Limits(timeout_s=4.0))
    with pytest.raises(StepFailed, match="over its time limit of 4 s"):
        build.run(one)
    assert farm.runs("slow") <= 1  # what the step itself did is not tried again


def test_a_build_that_is_stopped_ends_what_runs_for_it(farm: TestFarm) -> None:
    with farm.build("stopped") as build:
        one = step("stopped", build.folder, sleep_s=120.0)
        found: list[Any] = []
        import threading

        thread = threading.Thread(target=lambda: found.extend(build.run_all([one])))
        thread.start()
        until(lambda: farm.runs("stopped") == 1)
        pid = farm.pid("stopped")
        build.space.farm.close()  # type: ignore[union-attr]
        thread.join(timeout=60)
        assert "stopped before it was done" in str(found[0])
        until(lambda: not Path(f"/proc/{pid}").exists())


def test_who_has_left_the_farm_asks_nothing_of_it(farm: TestFarm) -> None:
    with farm.build("left") as build:
        build.connection.close()
        with pytest.raises(StepFailed, match="stopped before it was done"):
            build.run(step("left", build.folder))
    assert farm.runs("left") == 0


def test_a_label_that_nobody_offers_fails_at_once(build: TestBuild) -> None:
    with pytest.raises(StepFailed) as failed:
        build.connection.perform("0" * 32, "{}", {"vitis-2.5": 1.0}, step="m/x", timeout_s=9.0)
    assert "no machine of the farm offers vitis-2.5" in str(failed.value)
    assert "alpha (python-" in str(failed.value)


def test_a_missing_toolchain_says_which_machines_were_seen(build: TestBuild) -> None:
    tool = build.space.lacks(step("x", build.folder, toolchain="vitis"))
    assert tool is not None
    assert "machines seen in the farm: alpha, beta, rogue" in tool.hint


# What is refused.


def _sent(build: TestBuild, one: Step, **changes: Any) -> str:
    """The specification of a step, changed on its way."""
    errand, luggage = make_errand(one, build.space, declared(one, build.space))
    sha256 = build.space.farm.carriage.send(luggage.files)  # type: ignore[union-attr]
    return json.dumps(msgspec.to_builtins(errand) | {"sha256": sha256} | changes)


def _refused(build: TestBuild, text: str, name: str) -> str:
    seat = build.space.seat(step("x", build.folder))
    assert seat is not None
    word = build.connection.perform(name, text, seat.resources, step="m/x", timeout_s=60.0)
    assert word.what == "refused"
    assert word.failure is not None
    return word.failure.message


def test_a_path_outside_of_the_scratch_folder_is_refused_and_reported(
    farm: TestFarm, build: TestBuild, tmp_path: Path
) -> None:
    (tmp_path / "data.bin").write_bytes(b"data")
    one = step("escape", tmp_path, files={"data": str(tmp_path / "data.bin")})
    text = _sent(build, one)
    for number, path in enumerate(("../escape", "/tmp/escape", "home/../../x")):
        changed = text.replace("home/data.bin", path)
        assert changed != text
        message = _refused(build, changed, f"escape-{number}")
        assert "outside of the scratch folder" in message
    assert "refused: error: m/escape" in farm.log("alpha") + farm.log("beta")
    assert farm.runs("escape") == 0


def test_an_option_that_names_a_file_of_the_machine_is_refused(build: TestBuild) -> None:
    text = _sent(build, step("option", build.folder))
    changed = text.replace('"name": "option"', '"name": "/etc/passwd"')
    assert "an option names a file outside" in _refused(build, changed, "option")


def test_facts_that_are_not_those_of_the_inputs_are_refused(
    build: TestBuild, tmp_path: Path
) -> None:
    """A machine signs only what it has seen: else a record under another key could be had."""
    (tmp_path / "data.bin").write_bytes(b"data")
    one = step("facts", tmp_path, files={"data": str(tmp_path / "data.bin")})
    changed = json.loads(_sent(build, one))
    changed["facts"]["file.data"] = "0" * 32
    changed["key"] = key_of(changed["facts"])
    message = _refused(build, json.dumps(changed), "facts")
    assert "it is not what it says: file.data" in message


@pytest.fixture(scope="module")
def offer() -> Offer:
    return make_offer(name="here", only=["python"])


@pytest.fixture
def errand(tmp_path: Path) -> Errand:
    space = Workspace(tmp_path)
    space.__dict__["store"] = Store(tmp_path / "store")
    (tmp_path / "x.npy").write_bytes(b"x")
    one = step("m", tmp_path, files={"x": str(tmp_path / "x.npy")})
    errand, _ = make_errand(one, space, declared(one, space))
    return msgspec.structs.replace(errand, sha256=("0" * 64,))


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "kind": ({"kind": "rm"}, "there is no step of the kind 'rm'"),
    "version": ({"version": 2}, "its version is 2, that of the step here is 1"),
    "package": ({"package": "9.9"}, "tf2aif 9.9 has sent it"),
    "options": ({"options": {"name": "m", "shell": "x"}}, "wrong options: .*shell"),
    "toolchain": ({"toolchain": "vitis"}, "here does not offer the toolchain 'vitis'"),
    "engine": ({"engines": ["nothing"]}, "does not offer the toolchain 'nothing'"),
    "device": ({"device": "nvidia"}, "no device of the kind 'nvidia'"),
    "code": ({"code": "home/x.npy"}, "started without --allow-code"),
    "variables": ({"variables": {"TF_X": "1"}}, "started without --allow-code"),
    "step": ({"step": "../../x/y"}, "not the name of a step"),
    "input": ({"inputs": {"x": "home"}, "files": [], "sha256": []}, "not among its files"),
    "elsewhere": ({"inputs": {"x": "/etc/passwd"}}, "not among its files: '/etc/passwd'"),
    "out": ({"folders": ["out/x"]}, "where the results go"),
    "folder": ({"folders": ["../x"]}, "outside of the scratch folder"),
    "sha256": ({"sha256": ["x"]}, "not a SHA-256"),
    "fewer": ({"sha256": []}, "its list of files is not one"),
    "key": ({"key": "0" * 32}, "its facts do not give its key"),
    "time": ({"timeout_s": 0.0}, "its limits are none"),
    "unknown key": ({"shell": "x"}, "not a specification of a step: .*shell"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_specification_is_refused(errand: Errand, offer: Offer, name: str) -> None:
    changes, message = WRONG[name]
    text = json.dumps(msgspec.to_builtins(errand))
    assert read_errand(text, offer) == errand
    with pytest.raises(Refused, match=message):
        read_errand(json.dumps({**json.loads(text), **changes}), offer)


@pytest.mark.parametrize("name", ["LD_PRELOAD", "PYTHONPATH", "PATH", "CUDA_INJECTION64_PATH"])
def test_variables_that_load_code_are_refused_even_with_allow_code(
    errand: Errand, offer: Offer, name: str
) -> None:
    offer = msgspec.structs.replace(offer, code=True)
    text = json.dumps(msgspec.to_builtins(errand) | {"variables": {name: "x"}})
    with pytest.raises(Refused, match=f"the variable {name} is not set"):
        read_errand(text, offer)


@pytest.mark.parametrize(
    ("options", "path"),
    [
        ({"a": 1, "b": ["x/y", {"c": "serving_default"}]}, None),
        ({"a": {"b": ["/etc/passwd"]}}, "/etc/passwd"),
        ({"../x": 1}, "../x"),
        ({"a": "~/x"}, "~/x"),
    ],
)
def test_paths_in_options_are_seen(options: Any, path: str | None) -> None:
    assert outside(options) == path


def test_no_other_function_is_run(farm: TestFarm, build: TestBuild) -> None:
    """A client with a right to submit, and a function of its own."""
    client = build.connection._client
    mark = farm.root / "mark"
    future = client.submit(os.mkdir, str(mark), key="mark", pure=False)
    assert future.exception(timeout=30) is not None
    for call in (client.run, client.run_on_scheduler):
        with pytest.raises(Exception, match=r".*"):
            call(os.mkdir, str(mark))
    assert not mark.exists()
    assert build.run(step("after", build.folder)).done == "ran"  # the farm is as well as before


@pytest.mark.parametrize("value", [os.system, io.open, subprocess.Popen, print])
def test_pickles_of_other_names_are_not_read(value: Any) -> None:
    with pytest.raises(pickle.UnpicklingError, match="is not run on a farm"):
        Unpickler(io.BytesIO(pickle.dumps(value))).load()


@pytest.mark.parametrize("value", [os.system, subprocess.Popen, print])
def test_a_build_takes_nothing_that_would_run_from_a_machine(value: Any) -> None:
    class Evil:
        def __reduce__(self) -> Any:
            return value, ("touch /tmp/evil",)

    found = AnswerUnpickler(io.BytesIO(pickle.dumps(Evil()))).load()
    assert isinstance(found, Unknown)
    assert not Path("/tmp/evil").exists()


def test_a_signature_of_a_stranger_does_not_count(farm: TestFarm) -> None:
    stranger = new_key(farm.root, "stranger").public
    with farm.build("distrust", trusted=[stranger]) as build:
        with pytest.raises(StepFailed, match="no record of it that counts") as failed:
            build.run(step("distrust", build.folder))
    assert "cache.trusted" in str(failed.value)


def test_wrong_bytes_are_refused_and_their_maker_named(build: TestBuild) -> None:
    one = step("wrong", build.folder, size=50_000, toolchain="pof2")
    with pytest.raises(StepFailed, match="what rogue made is refused"):
        build.run(one)
    assert not build.space.artifact(one).exists()
    assert build.space.made(one) is None


# Certificates.


def test_a_stranger_is_not_taken(farm: TestFarm, build: TestBuild, tmp_path: Path) -> None:
    """Without a certificate, and with one of another authority."""
    (other,) = make_keys(tmp_path / "other", ["client"])
    for address in (Address("127.0.0.1", farm.port, None), Address("127.0.0.1", farm.port, other)):
        with pytest.raises(Tf2aifError, match="does not accept us"):
            Farm(address, patience_s=1.0)
    assert build.run(step("tls", build.folder)).done == "ran"


def test_keys_are_readable_by_their_owner_alone(certificates: Path) -> None:
    for path in certificates.rglob("*key.pem"):
        assert path.stat().st_mode & 0o077 == 0
    with pytest.raises(Tf2aifError, match="there is a certificate already"):
        make_keys(certificates, ["client"])
    with pytest.raises(Tf2aifError, match="is no name of a machine"):
        make_keys(certificates, ["../x"])


def test_certificates_are_of_one_authority_and_verify(certificates: Path) -> None:
    from cryptography import x509

    authority = x509.load_pem_x509_certificate((certificates / "ca.pem").read_bytes())
    for name in ("scheduler", "worker", "client"):
        own = x509.load_pem_x509_certificate((certificates / name / "cert.pem").read_bytes())
        own.verify_directly_issued_by(authority)
        assert not own.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    (later,) = make_keys(certificates, ["board"])
    own = x509.load_pem_x509_certificate((later / "cert.pem").read_bytes())
    own.verify_directly_issued_by(authority)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("0.0.0.0", "without certificates a farm is on 127.0.0.1 only"),
        ("farm.example:8786", "without certificates"),
        ("tls://127.0.0.1", "there is no certificate for this farm"),
        ("http://127.0.0.1", "not the address of a farm"),
        ("127.0.0.1:notaport", "not the address of a farm"),
        ("", "not the address of a farm"),
    ],
)
def test_wrong_addresses_are_told(
    text: str, message: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    with pytest.raises(Tf2aifError, match=message):
        parse(text)


def test_addresses(certificates: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    assert parse("127.0.0.1").url == "tcp://127.0.0.1:8786"
    assert parse("[::1]:80").url == "tcp://[::1]:80"
    tls = str(certificates / "client")
    assert parse("farm.example", tls).url == "tls://farm.example:8786"
    monkeypatch.setenv("TF2AIF_FARM_TLS", tls)
    assert parse("farm.example:1").url == "tls://farm.example:1"
    with pytest.raises(Tf2aifError, match=r"there is no ca\.pem"):
        parse("farm.example", str(tmp_path))
    assert is_loopback("localhost")
    assert not is_loopback("127.0.0.1.example")


def test_the_command_line_does_not_listen_for_others_without_certificates(tmp_path: Path) -> None:
    environment = {**os.environ, "XDG_CONFIG_HOME": str(tmp_path)}
    for words in (
        ["farm", "scheduler", "--host", "0.0.0.0", "--port", "0"],
        ["worker", "farm.example", "--cache", str(tmp_path)],
    ):
        done = subprocess.run(
            [sys.executable, "-m", "tf2aif", *words],
            env=environment,
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert done.returncode == 1
        assert "without certificates" in done.stderr
        assert "tf2aif farm keygen" in done.stderr


# Who runs what.


def _offer(machine: str, python: str = "3.11", **fields: Any) -> Offer:
    facts = {**identity("python").facts(), "python": python}  # type: ignore[union-attr]
    bid = {"python": {"label": label_of("python", facts), "facts": facts}}
    plain = {
        "machine": machine, "platform": "linux/amd64", "python": python, "slots": 2,
        "memory_mb": 8000, "bids": bid,
    }  # fmt: skip
    return msgspec.convert({**plain, **fields}, Offer)


def test_a_step_goes_only_where_its_very_toolchain_is(tmp_path: Path) -> None:
    other = "3.12" if sys.version_info[:2] != (3, 12) else "3.13"
    same = f"{sys.version_info.major}.{sys.version_info.minor}"
    one = step("x", tmp_path)
    assert Seats([_offer("a", other)], identity).seat(one) is None
    seat = Seats([_offer("a", other), _offer("b", same)], identity).seat(one)
    assert seat is not None
    assert seat.here
    assert seat.facts["toolchain.python"] == same
    chosen = Seats(
        [_offer("a", other), _offer("b", same)], identity, {"python": _offer("a", other).labels[0]}
    ).seat(one)
    assert chosen is not None
    assert not chosen.here
    assert chosen.facts["toolchain.python"] == other


def test_a_toolchain_that_is_not_here_is_the_farms(tmp_path: Path) -> None:
    def nothing(name: str) -> Identity | Missing:
        return Missing(name, "buy one")

    seat = Seats([_offer("a", "3.13")], nothing).seat(step("x", tmp_path))
    assert seat is not None
    assert seat.facts["toolchain.python"] == "3.13"
    assert Seats([], nothing).seat(step("x", tmp_path)) is None


def test_machines_with_another_tf2aif_are_left_alone(tmp_path: Path) -> None:
    here = f"{sys.version_info.major}.{sys.version_info.minor}"
    seats = Seats([_offer("old", here, version="0.1.0+00000000")], identity)
    assert seats.seat(step("x", tmp_path)) is None
    assert "old (with tf2aif 0.1.0+00000000)" in seats.explain("python")
    assert Seats([_offer("same", here)], identity).seat(step("x", tmp_path)) is not None


def test_an_edit_of_our_source_is_another_tf2aif(tmp_path: Path) -> None:
    def package(name: str, module: str, text: str) -> Path:
        path = tmp_path / name / module
        path.parent.mkdir(parents=True)
        path.write_text(text)
        return tmp_path / name

    first = package("first", "steps/convert.py", "VERSION = 1\n")
    (first / "steps" / "notes.txt").write_text("no module")
    assert version(first) == version(package("same", "steps/convert.py", "VERSION = 1\n"))
    assert version(first) != version(package("edit", "steps/convert.py", "VERSION = 1  # x\n"))
    assert version(first) != version(package("moved", "convert.py", "VERSION = 1\n"))
    assert not has_changed(first)
    (first / "steps" / "convert.py").touch()
    assert not has_changed(first)
    (first / "steps" / "convert.py").write_text("VERSION = 2\n")
    assert has_changed(first)
    assert version(first) == version(tmp_path / "same")  # this process is what it was


def test_a_machine_whose_tf2aif_is_changed_leaves(farm: TestFarm, tmp_path: Path) -> None:
    source = tmp_path / "source"
    shutil.copytree(Path(tf2aif.__file__).parent, source / "tf2aif")
    path = os.pathsep.join([str(Path(__file__).parent), str(source)])
    farm.add("upgraded", "--slots", "1", PYTHONPATH=path)
    with (source / "tf2aif" / "steps" / "check.py").open("a") as file:
        file.write("# an upgrade\n")
    assert farm.processes["upgraded"].wait(timeout=60) == 1
    assert "tf2aif was changed on this machine: it has left the farm" in farm.log("upgraded")
    del farm.processes["upgraded"]


def test_a_toolchain_with_a_place_of_its_own_stays_there(tmp_path: Path) -> None:
    assert Seats([_offer("a")], lambda _: None).seat(step("x", tmp_path)) is None


def test_platform_memory_and_code_are_kept_to(tmp_path: Path) -> None:
    python = f"{sys.version_info.major}.{sys.version_info.minor}"
    seats = Seats([_offer("a", python)], identity)
    assert seats.seat(step("x", tmp_path, limits=Limits(memory_mb=9000))) is None
    small = seats.seat(step("x", tmp_path, limits=Limits(memory_mb=4000)))
    assert small is not None
    assert small.resources["memory-mb"] == 4000
    assert not seats.kept
    assert seats.seat(step("x", tmp_path, code=str(tmp_path / "loader.py"))) is None
    assert seats.kept == {"the recipe's own code"}
    assert seats.seat(step("x", tmp_path, platform="linux/arm64")) is None
    arm = _offer("arm", python, platform="linux/arm64")
    seat = Seats([_offer("a", python), arm], identity).seat(
        step("x", tmp_path, platform="linux/arm64")
    )
    assert seat is not None
    assert seat.resources["linux-arm64"] == 1.0
    assert Seats([arm], identity).platforms == {"linux/arm64"}


def test_labels_tell_versions_and_hide_nothing() -> None:
    facts = identity("python").facts()  # type: ignore[union-attr]
    label = label_of("python", facts)
    assert label.startswith(
        f"python-{'.'.join(facts['numpy'].split('.')[:2])}-py{facts['python']}@"
    )
    assert label_of("python", {**facts, "numpy": facts["numpy"] + ".1"}) != label
    with pytest.raises(Tf2aifError, match=r"vitis: .* is not here"):
        bids(["vitis"])


def test_a_farm_that_is_not_there_is_told_at_once() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
    with pytest.raises(Tf2aifError, match="no scheduler of a farm answers"):
        Farm(Address("127.0.0.1", port, None))


def test_action_names_are_those_of_the_shared_cache(farm: TestFarm, build: TestBuild) -> None:
    """What a farm makes is an entry like any other: builds without the farm take it."""
    one = step("shared", build.folder)
    build.run(one)
    made = build.space.made(one)
    assert made is not None
    name = action_name(made.key)
    assert (Path(farm.cache) / "ac" / name[:2] / name).is_file()
