"""User code is executed from its source as it is now, and what it reads is noticed."""

from __future__ import annotations

import importlib
import os
import py_compile
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tf2aif.digest import StatCache, digest_bytes
from tf2aif.errors import StepFailed
from tf2aif.facts import ABSENT, Facts
from tf2aif.observed import current_value, list_digest, path_name
from tf2aif.usercode import load_function
from tf2aif.workers import Outcome, Request, Workers

HERE = Path(__file__).parent
Call = Callable[..., Outcome]


@pytest.fixture(scope="module")
def workers() -> Iterator[Workers]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(HERE))
        with Workers() as workers:
            yield workers


@pytest.fixture
def recipes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A recipe's folder in a user's own tree; it is on Python's path for this test only."""
    monkeypatch.setattr(sys, "path", [*sys.path])
    folder = tmp_path / "tree" / "recipes"
    folder.mkdir(parents=True)
    (tmp_path / "tree" / "dodo.py").write_text("")
    return folder


@pytest.fixture
def call(workers: Workers, recipes: Path, tmp_path: Path) -> Call:
    """Calls a function of `recipes/code.py` in a worker, as a step does."""

    def run(function: str = "f", code: str = "code.py", **arguments: Any) -> Outcome:
        out = tmp_path / "out"
        out.mkdir(exist_ok=True)
        request = Request(
            step="kws/calibration",
            kind="deed",
            module="deeds",
            toolchain="python",
            options={"do": "call", "function": function, **arguments},
            inputs={"code": str(recipes / code)},
            out=str(out),
            folder=str(recipes),
            code=str(recipes / code),
        )
        return workers.run(request, log=tmp_path / "log.txt", timeout_s=60)

    return run


def write(path: Path, source: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(textwrap.dedent(source), encoding="utf-8")
    return path


def own(outcome: Outcome) -> Facts:
    """What was observed, apart from distributions."""
    return {n: v for n, v in outcome.observed.items() if not n.startswith("dist.")}


def digest_of(path: Path) -> str:
    return digest_bytes(path.read_bytes())


# -- loading --


def test_a_function_is_found_by_name(recipes: Path) -> None:
    path = write(recipes / "code.py", "def f(a, b=2):\n    return a + b\n")
    assert load_function(path, "f")(1) == 3


def test_the_nearest_name_is_told(recipes: Path) -> None:
    path = write(recipes / "code.py", "def samples(): ...\ndef labels(): ...\nX = 1\n")
    with pytest.raises(StepFailed) as caught:
        load_function(path, "sample")
    assert caught.value.faults[0].hint == "did you mean 'samples'?"
    with pytest.raises(StepFailed) as caught:
        load_function(path, "qqqq")
    assert caught.value.faults[0].hint == "there are: labels, samples"
    with pytest.raises(StepFailed, match="'X' is no function"):
        load_function(path, "X")


def test_a_missing_file_is_told(recipes: Path) -> None:
    with pytest.raises(StepFailed, match="cannot be read: No such file"):
        load_function(recipes / "none.py", "f")


def test_a_syntax_error_has_its_line(recipes: Path) -> None:
    path = write(recipes / "code.py", "x = 1\ndef f(:\n")
    with pytest.raises(StepFailed) as caught:
        load_function(path, "f")
    assert caught.value.faults[0].at == f"{path}:2"


def test_an_edit_of_the_same_size_and_time_is_seen(recipes: Path) -> None:
    path = write(recipes / "code.py", "def f(): return 1\n")
    before = path.stat()
    assert load_function(path, "f")() == 1
    write(path, "def f(): return 2\n")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert path.stat().st_size == before.st_size
    assert load_function(path, "f")() == 2


def test_one_content_is_executed_once(recipes: Path) -> None:
    path = write(
        recipes / "code.py", "state = []\ndef f():\n    state.append(1)\n    return state\n"
    )
    load_function(path, "f")()
    assert load_function(path, "f")() == [1, 1]


def test_a_library_is_not_replaced_by_a_file_of_its_name(recipes: Path) -> None:
    random = importlib.import_module("random")
    path = write(recipes / "random.py", "def f(): return __name__\n")
    assert load_function(path, "f")() == "recipe_random"
    assert sys.modules["random"] is random


def test_dataclasses_and_annotations_work(recipes: Path) -> None:
    source = """
        from __future__ import annotations
        import dataclasses

        @dataclasses.dataclass
        class Point:
            x: int = 1

        def f() -> Point:
            return Point()
    """
    assert load_function(write(recipes / "shapes_code.py", source), "f")().x == 1


# -- in a worker: modules --


def test_modules_beside_the_code_are_found_and_observed(call: Call, recipes: Path) -> None:
    write(
        recipes / "code.py",
        "import helper_a\nfrom pack.sub import b\ndef f(): return helper_a.a + b\n",
    )
    write(recipes / "helper_a.py", "a = 1\n")
    write(recipes / "pack" / "__init__.py", "")
    write(recipes / "pack" / "sub.py", "b = 2\n")
    outcome = call()
    assert outcome.result["value"] == 3
    assert own(outcome) == {
        "module.code.py": digest_of(recipes / "code.py"),
        "module.helper_a.py": digest_of(recipes / "helper_a.py"),
        "module.helper_a/__init__.py": ABSENT,  # it would come first
        "module.pack/__init__.py": digest_of(recipes / "pack" / "__init__.py"),
        "module.pack/sub.py": digest_of(recipes / "pack" / "sub.py"),
    }


def test_an_edited_helper_is_seen_though_its_time_and_size_are_the_same(
    call: Call, recipes: Path
) -> None:
    write(recipes / "code.py", "import helper\ndef f(): return helper.a\n")
    helper = write(recipes / "helper.py", "a = 1\n")
    before = helper.stat()
    py_compile.compile(str(helper), doraise=True)  # Python itself would trust this file
    assert call().result["value"] == 1
    write(helper, "a = 2\n")
    os.utime(helper, ns=(before.st_atime_ns, before.st_mtime_ns))
    outcome = call()
    assert outcome.result["value"] == 2
    assert outcome.observed["module.helper.py"] == digest_of(helper)


def test_helpers_of_one_name_do_not_mix(call: Call, recipes: Path) -> None:
    for name in ("one", "two"):
        write(recipes / name / "code.py", "import helper\ndef f(): return helper.a\n")
        write(recipes / name / "helper.py", f"a = '{name}'\n")
    assert call(code="one/code.py").result["value"] == "one"
    assert call(code="two/code.py").result["value"] == "two"


def test_user_code_never_meets_the_process_of_another_step(call: Call, recipes: Path) -> None:
    write(recipes / "code.py", "def f(): return 1\n")
    assert call().result["pid"] != call().result["pid"]


def test_nothing_is_written_beside_the_code(call: Call, recipes: Path) -> None:
    write(recipes / "code.py", "import helper\ndef f(): return 1\n")
    write(recipes / "helper.py", "")
    call()
    assert sorted(path.name for path in recipes.iterdir()) == ["code.py", "helper.py"]


def test_a_module_that_would_be_found_first_is_a_fact(call: Call, recipes: Path) -> None:
    write(recipes / "code.py", "import xml.dom\ndef f(): return 1\n")
    observed = own(call())
    assert observed["module.xml.py"] == ABSENT
    write(recipes / "xml.py", "")
    assert current_value("module.xml.py", recipes) != ABSENT


def test_other_distributions_are_observed(call: Call, recipes: Path) -> None:
    import yaml

    write(recipes / "code.py", "def f():\n    import yaml\n    return yaml.safe_load('[1]')\n")
    assert call().observed["dist.pyyaml"] == yaml.__version__


def test_a_helper_with_a_distributions_name_is_the_users(call: Call, recipes: Path) -> None:
    write(recipes / "code.py", "import yaml\ndef f(): return yaml.a\n")
    write(recipes / "yaml.py", "a = 'mine'\n")
    outcome = call()
    assert outcome.result["value"] == "mine"
    assert "dist.pyyaml" not in outcome.observed
    assert "module.yaml.py" in outcome.observed


# -- in a worker: files --


def test_files_that_are_read_are_observed(call: Call, recipes: Path) -> None:
    source = """
        from pathlib import Path
        import io, json, os
        import numpy as np

        HERE = Path(__file__).parent
        LABELS = (HERE / "labels.txt").read_text().split()

        def f():
            data = np.load(HERE.parent / "data" / "x.npy")
            fd = os.open(HERE / "raw.bin", os.O_RDONLY)
            raw = os.read(fd, 10)
            os.close(fd)
            return [len(LABELS), int(data.sum()), len(raw)]
    """
    import numpy as np

    write(recipes / "code.py", source)
    write(recipes / "labels.txt", "yes no\n")
    write(recipes / "raw.bin", "abc")
    (recipes.parent / "data").mkdir()
    np.save(recipes.parent / "data" / "x.npy", np.arange(4))
    outcome = call()
    assert outcome.result["value"] == [2, 6, 3]
    files = {n: v for n, v in own(outcome).items() if n.startswith("file.")}
    assert files == {
        "file.../data/x.npy": digest_of(recipes.parent / "data" / "x.npy"),
        "file.labels.txt": digest_of(recipes / "labels.txt"),
        "file.raw.bin": digest_of(recipes / "raw.bin"),
    }


def test_a_file_that_is_not_there_is_a_fact(call: Call, recipes: Path) -> None:
    source = """
        from pathlib import Path
        def f():
            try:
                return (Path(__file__).parent / "weights.txt").read_text()
            except OSError:
                return "none"
    """
    write(recipes / "code.py", source)
    observed = own(call())
    assert observed["file.weights.txt"] == ABSENT
    write(recipes / "weights.txt", "1")
    assert current_value("file.weights.txt", recipes) == digest_of(recipes / "weights.txt")


@pytest.mark.parametrize(
    "listing",
    [
        "os.listdir(HERE / 'wavs')",
        "[e.name for e in os.scandir(HERE / 'wavs')]",
        "[p.name for p in (HERE / 'wavs').glob('*.wav')]",
        "[os.path.basename(p) for p in glob.glob(str(HERE / 'wavs' / '*.wav'))]",
        "[f for _, _, fs in os.walk(HERE / 'wavs') for f in fs]",
    ],
)
def test_the_names_in_a_folder_that_is_listed_are_a_fact(
    call: Call, recipes: Path, listing: str
) -> None:
    head = "import glob, os\nfrom pathlib import Path\nHERE = Path(__file__).parent\n"
    write(recipes / "code.py", f"{head}def f():\n    return {listing}\n")
    write(recipes / "wavs" / "a.wav", "a")
    outcome = call()
    assert outcome.result["value"] == ["a.wav"]
    assert outcome.observed["folder.wavs"] == current_value("folder.wavs", recipes)
    write(recipes / "wavs" / ".a.wav.swp", "an editor's")
    assert outcome.observed["folder.wavs"] == current_value("folder.wavs", recipes)
    write(recipes / "wavs" / "b.wav", "b")
    assert outcome.observed["folder.wavs"] != current_value("folder.wavs", recipes)


def test_importing_lists_no_folder(call: Call, recipes: Path) -> None:
    write(recipes / "code.py", "import helper\ndef f(): return 1\n")
    write(recipes / "helper.py", "")
    assert not any(name.startswith("folder.") for name in call().observed)


def test_libraries_scratch_and_output_are_not_observed(call: Call, recipes: Path) -> None:
    source = """
        import json, os, tempfile
        import numpy.testing
        def f():
            with open("scratch.txt", "w") as file: file.write("1")
            open("scratch.txt").close()
            with tempfile.NamedTemporaryFile() as file: open(file.name).close()
            open("/proc/self/status").close()
            open(json.__file__).close()
            open(numpy.__file__).close()
            return 1
    """
    write(recipes / "code.py", source)
    kinds = {name.partition(".")[0] for name in own(call())}
    assert kinds == {"module"}


def test_what_the_code_writes_itself_is_no_input(call: Call, recipes: Path) -> None:
    source = """
        import os
        from pathlib import Path
        CACHE = Path(__file__).parent / "cache.txt"
        def f():
            if CACHE.exists():
                return CACHE.read_text()
            try:
                return CACHE.read_text()
            except OSError:
                part = CACHE.with_suffix(".part")
                part.write_text("made")
                os.replace(part, CACHE)
                return CACHE.read_text()
    """
    write(recipes / "code.py", source)
    assert not any(name.startswith("file.") for name in call().observed)
    assert "file.cache.txt" in call().observed  # now it was there before


CHANGES = {
    "file": "(HERE / 'data.txt').read_text(); (HERE / 'data.txt').write_text('other')",
    "same size": """
    found = os.stat(HERE / 'data.txt')
    (HERE / 'data.txt').read_text()
    (HERE / 'data.txt').write_text('DATA')
    os.utime(HERE / 'data.txt', ns=(found.st_atime_ns, found.st_mtime_ns))
    """,
    "removed": "(HERE / 'data.txt').read_text(); (HERE / 'data.txt').unlink()",
    "appeared": "(HERE / 'new.txt').exists() or look(); os.system(f'echo 1 > {HERE}/new.txt')",
    "helper": "import helper; (HERE / 'helper.py').write_text('b = 1')",
    "code": "Path(__file__).write_text('other')",
    "folder": "os.listdir(HERE / 'wavs'); (HERE / 'wavs' / 'c.wav').write_text('')",
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_what_changes_while_the_step_runs_fails_it(call: Call, recipes: Path, change: str) -> None:
    head = """
import os
from pathlib import Path
HERE = Path(__file__).parent

def look():
    try: open(HERE / 'new.txt')
    except OSError: pass

def f():
    """
    (recipes / "code.py").write_text(head + change.strip() + "\n")
    write(recipes / "data.txt", "data")
    write(recipes / "helper.py", "a = 1\n")
    write(recipes / "wavs" / "a.wav", "a")
    with pytest.raises(StepFailed, match="changed while the step ran"):
        call()


def test_an_exception_has_the_line_of_the_users_code(call: Call, recipes: Path) -> None:
    write(recipes / "code.py", "import helper\n\ndef f():\n    return helper.g([1, 2])\n")
    helper = write(recipes / "helper.py", "import json\ndef g(x):\n    return json.loads(x)\n")
    with pytest.raises(StepFailed) as caught:
        call()
    fault = caught.value.faults[0]
    assert "TypeError: the JSON object must be str" in fault.message.splitlines()[0]
    assert fault.at == f"{helper}:3 in g"


def test_an_exception_while_loading_has_its_line(call: Call, recipes: Path) -> None:
    write(recipes / "code.py", "x = 1\ny = x / 0\ndef f(): ...\n")
    with pytest.raises(StepFailed) as caught:
        call()
    assert caught.value.faults[0].at == f"{recipes / 'code.py'}:2 in <module>"
    assert "division by zero" in caught.value.faults[0].message


def test_a_relative_path_gets_a_hint(call: Call, recipes: Path) -> None:
    write(recipes / "code.py", "def f():\n    return open('data.txt').read()\n")
    write(recipes / "data.txt", "1")
    with pytest.raises(StepFailed) as caught:
        call()
    assert "Path(__file__).parent" in caught.value.faults[0].hint


# -- names and values of facts --


def test_names_move_with_the_tree(recipes: Path, tmp_path: Path) -> None:
    assert path_name(str(recipes / "a.txt"), str(recipes)) == "a.txt"
    assert path_name(str(recipes.parent / "b.txt"), str(recipes)) == "../b.txt"
    assert path_name(str(tmp_path / "c.txt"), str(recipes)) == str(tmp_path / "c.txt")


def test_names_are_the_same_through_a_link(recipes: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(recipes.parent)
    through = tmp_path / "link" / "recipes"
    assert path_name(str(through / "a.txt"), str(through)) == "a.txt"
    assert path_name(str(recipes / "a.txt"), str(through)) == "a.txt"


def test_current_values(recipes: Path, tmp_path: Path) -> None:
    import numpy

    cache = StatCache.load(tmp_path / "stats")
    path = write(recipes / "a.txt", "1")
    assert current_value("dist.numpy", recipes) == numpy.__version__
    assert current_value("dist.no-such", recipes) == ABSENT
    assert current_value("file.a.txt", recipes, cache) == digest_of(path)
    assert current_value(f"file.{path}", Path("/"), cache) == digest_of(path)
    assert current_value("module.none.py", recipes, cache) == ABSENT
    assert current_value("file.", recipes, cache) == ABSENT  # a folder
    assert current_value("folder.", recipes) == list_digest(str(recipes)) != ABSENT
    assert current_value("folder.none", recipes) == ABSENT


def test_what_was_observed_is_what_is_there_now(call: Call, recipes: Path) -> None:
    """The rule that a no-op build rests on, for every fact of a step that reads all kinds."""
    source = """
        import os, helper, yaml
        from pathlib import Path
        HERE = Path(__file__).parent
        def f():
            return [os.listdir(HERE / "wavs"), (HERE / "wavs" / "a.wav").read_text()]
    """
    write(recipes / "code.py", source)
    write(recipes / "helper.py", "")
    write(recipes / "wavs" / "a.wav", "a")
    observed = call().observed
    assert {name.partition(".")[0] for name in observed} == {"dist", "module", "file", "folder"}
    assert {name: current_value(name, recipes) for name in observed} == observed
