"""Sample sets: every format read, chosen and checked against a signature, and what is refused."""

from __future__ import annotations

import contextlib
import gzip
import struct
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image

from tf2aif.engines import TensorSpec
from tf2aif.errors import FilesError, StepFailed
from tf2aif.images import read_image
from tf2aif.samples import Header, inspect
from tf2aif.sampleset import cast, read_set
from tf2aif.sources import Source, is_code_key, plan_sources
from tf2aif.spec.recipe import Data, Images
from tf2aif.steps import Job, dataset, step_module
from tf2aif.tfrecord import read_feature, read_records

KWS = Path(__file__).parents[2] / "shared" / "kws" / "samples.npz"


class Project:
    """A folder with a model's signature, data files, and the steps that are run on them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.runs = 0
        self.model({"x": ("float32", (1, 2, 3))})

    def model(self, inputs: dict[str, tuple[str, tuple[int | None, ...]]]) -> None:
        specs = [TensorSpec(name=n, dtype=d, shape=s) for n, (d, s) in inputs.items()]
        (self.folder / "model").mkdir(exist_ok=True)
        signature = msgspec.json.encode({"inputs": specs, "outputs": []})
        (self.folder / "model" / "signature.json").write_bytes(signature)

    def run(self, data: str | Data, labels: str | Data | None = None, **options: Any) -> Any:
        """Plan as the graph does, run the step, and read the set back."""
        sources, files = plan_sources(data)
        if labels is not None:
            planned, more = plan_sources(labels, "labels")
            options["labels"], files = planned[""], {**files, **more}
        options["inputs"] = sources
        self.runs += 1
        out = self.folder / f"out{self.runs}"
        out.mkdir()
        inputs = {key: self.folder / path for key, path in files.items()}
        job = Job(
            step="demo/evaluation",
            kind="evaluation",
            options=msgspec.to_builtins(options),
            inputs={"model": self.folder / "model", **inputs},
            out=out,
        )
        result = dataset.run(job)
        found = read_set(out)
        assert result == {
            "samples": found.samples,
            "random": found.random,
            "labels": found.labels is not None,
        }
        return found

    def fails(self, *args: Any, **options: Any) -> str:
        with pytest.raises(StepFailed) as failure:
            self.run(*args, **options)
        return failure.value.render()


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return Project(tmp_path)


@pytest.fixture
def samples(project: Project) -> Any:
    """Ten samples for the default signature, in x.npy, and labels 0 to 9 in all.npz#y."""
    values = np.random.default_rng(0).standard_normal((10, 2, 3)).astype(np.float32)
    np.save(project.folder / "x.npy", values)
    np.savez(project.folder / "all.npz", x=values, y=np.arange(10))
    np.savez(project.folder / "one.npz", x=values)
    return values


def test_both_steps_are_in_the_table() -> None:
    assert step_module("calibration") is step_module("evaluation") is dataset


@pytest.mark.parametrize("data", ["x.npy", "all.npz#x", "one.npz", "one.npz#x"])
def test_an_array_comes_back_as_it_is(project: Project, samples: Any, data: str) -> None:
    found = project.run(data, "all.npz#y")
    np.testing.assert_array_equal(found.inputs["x"], samples)
    assert found.labels.tolist() == list(range(10))


def test_the_first_and_the_drawn_samples_keep_their_labels(project: Project, samples: Any) -> None:
    first = project.run("x.npy", "all.npz#y", samples=4)
    assert first.labels.tolist() == [0, 1, 2, 3]
    drawn = project.run("x.npy", "all.npz#y", samples=4, choose="random", seed=3)
    again = project.run("x.npy", "all.npz#y", samples=4, choose="random", seed=3)
    other = project.run("x.npy", "all.npz#y", samples=4, choose="random", seed=4)
    assert drawn.labels.tolist() == again.labels.tolist() != other.labels.tolist()
    assert len(set(drawn.labels)) == 4
    np.testing.assert_array_equal(drawn.inputs["x"], samples[drawn.labels])


def test_the_same_samples_give_the_same_bytes(project: Project, samples: Any) -> None:
    project.run("x.npy", "all.npz#y")
    project.run("all.npz#x", "all.npz#y")
    first, second = project.folder / "out1", project.folder / "out2"
    names = sorted(path.name for path in first.iterdir())
    assert names == ["labels.npy", "set.json", "x0.npy"]
    for name in names:
        assert (first / name).read_bytes() == (second / name).read_bytes()


def test_a_long_set_is_written_in_chunks(
    project: Project, samples: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tf2aif.sampleset.CHUNK_BYTES", 3 * 24)
    np.testing.assert_array_equal(project.run("x.npy").inputs["x"], samples)
    broken = samples.copy()
    broken[8, 0, 0] = np.inf
    np.save(project.folder / "broken.npy", broken)
    assert "sample 8 holds infinity" in project.fails("broken.npy")


def test_several_inputs_by_name_in_the_signature_s_order(project: Project) -> None:
    project.model({"b": ("int32", (None, 2)), "a": ("float32", (None,))})
    np.savez(project.folder / "in.npz", ids=np.ones((3, 2), np.int64), scalar=np.arange(3.0))
    found = project.run(Data(inputs={"a": "in.npz#scalar", "b": "in.npz#ids"}))
    assert list(found.inputs) == ["b", "a"]
    assert found.inputs["b"].dtype == np.int32
    assert found.inputs["a"].tolist() == [0, 1, 2]
    assert "did you mean 'a'" in project.fails(Data(inputs={"aa": "in.npz#ids", "b": "in.npz#ids"}))
    assert "no samples for input a" in project.fails(Data(inputs={"b": "in.npz#ids"}))
    assert "give `inputs:`" in project.fails("in.npz#ids")


def test_counts_must_agree(project: Project, samples: Any) -> None:
    np.save(project.folder / "y.npy", np.arange(9))
    assert "the numbers of samples differ: x 10, labels 9" in project.fails("x.npy", "y.npy")
    assert "11 samples are asked for, there are 10" in project.fails("x.npy", samples=11)


def test_a_model_without_a_batch_axis(project: Project, samples: Any) -> None:
    project.model({"x": ("float32", (2, 3))})
    assert project.run("x.npy", batched=False).inputs["x"].shape == (10, 2, 3)
    assert "a sample has shape (2, 3), input 'x' wants (3,)" in project.fails("x.npy")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (np.zeros((4, 3, 2)), "a sample has shape (3, 2), input 'x' wants (2, 3)"),
        (np.zeros((4, 6)), "the number of values agrees"),
        (np.zeros((0, 2, 3)), "the sample set is empty"),
        (np.float32(1), "a single value"),
        (np.full((4, 2, 3), np.nan), "sample 0 holds NaN"),
        (np.full((4, 2, 3), 1e300), "float64 samples do not fit float32"),
        (np.zeros((4, 2, 3), np.complex64), "dtype complex64"),
        (np.zeros((4, 2, 3), "U1"), "dtype <U1"),
        (np.full((4, 2, 3), 2**24 + 1), "int64 samples do not fit float32"),
    ],
)
def test_samples_that_do_not_fit_are_refused(project: Project, values: Any, message: str) -> None:
    np.save(project.folder / "bad.npy", values)
    rendered = project.fails("bad.npy")
    assert message in rendered
    assert "bad.npy" in rendered


def test_files_that_are_not_what_they_say(project: Project, samples: Any) -> None:
    folder = project.folder
    whole = (folder / "x.npy").read_bytes()
    (folder / "cut.npy").write_bytes(whole[:-1])
    (folder / "text.npy").write_text("1 2 3")
    (folder / "cut.npz").write_bytes((folder / "all.npz").read_bytes()[:-40])
    (folder / "plain.npz").write_bytes(whole)
    np.save(folder / "objects.npy", np.array([{}, {}]), allow_pickle=True)
    for name in ("cut.npy", "text.npy", "objects.npy"):
        assert "not a whole .npy file" in project.fails(name)
    assert "not a whole .npz file" in project.fails("cut.npz")
    assert "an .npy file under" in project.fails("plain.npz")
    assert "no such file" in project.fails("missing.npy")
    assert "there are: x, y" in project.fails("all.npz")
    assert "no array 'z'" in project.fails("all.npz#z")


NUMBERS = ["float16", "float32", "float64", "int8", "uint8", "int16", "int32", "int64", "bool"]


@given(st.data(), st.sampled_from(NUMBERS), st.sampled_from(NUMBERS))
@settings(max_examples=300)
def test_a_cast_loses_nothing_but_rounding(data: st.DataObject, before: str, after: str) -> None:
    kind = np.dtype(before)
    elements = {"allow_nan": False, "allow_infinity": False} if kind.kind == "f" else {}
    values = data.draw(hnp.arrays(kind, 3, elements=hnp.from_dtype(kind, **elements)))
    exact = [int(v) if kind.kind != "f" else float(v) for v in values]
    try:
        changed = cast(values, after, "input 'x'", "here")
    except StepFailed:
        if np.dtype(after).kind == "f" and kind.kind == "f":
            assert max(map(abs, exact)) > float(np.finfo(after).max)
        else:  # some value has no exact place in the other dtype
            with np.errstate(all="ignore"):
                assert [_exact(v) for v in values.astype(after)] != exact
        return
    assert changed.dtype == after
    if kind.kind == "f" and np.dtype(after).kind == "f":
        assert np.allclose(changed, values, rtol=1e-3, atol=1e-7)
    else:
        assert [_exact(v) for v in changed] == exact


def _exact(value: Any) -> int | float:
    return float(value) if value.dtype.kind == "f" else int(value)


def test_random_samples_come_from_the_signature(project: Project) -> None:
    project.model({"f": ("float32", (1, 4)), "q": ("uint8", (1, 50)), "i": ("int64", (1, 9))})
    found = project.run("random", samples=20, seed=5)
    assert found.random
    assert found.samples == 20
    assert found.inputs["f"].shape == (20, 4)
    assert found.inputs["f"].std() > 0.5
    assert found.inputs["q"].max() > 200
    assert set(np.unique(found.inputs["i"])) == {0, 1}
    np.testing.assert_array_equal(
        found.inputs["f"], project.run("random", samples=20, seed=5).inputs["f"]
    )
    assert project.run("random").samples == dataset.RANDOM_SAMPLES
    project.model({"f": ("float32", (1, None))})
    assert "model.inputs" in project.fails("random")


# Images


def write_images(folder: Path) -> None:
    (folder / "pictures" / "b").mkdir(parents=True)
    red = np.zeros((8, 4, 3), np.uint8)
    red[..., 0] = 200
    Image.fromarray(red).save(folder / "pictures" / "b" / "red.png")
    Image.fromarray(red[..., ::-1]).save(folder / "pictures" / "blue.bmp")
    Image.fromarray(red[..., 0]).save(folder / "pictures" / "gray.png")
    (folder / "pictures" / "notes.md").write_text("no image")
    (folder / "pictures" / ".hidden.png").write_text("no image")


def test_a_folder_of_images_in_the_order_of_its_names(project: Project) -> None:
    write_images(project.folder)
    project.model({"x": ("float32", (1, 4, 2, 3))})
    how = Images(size=(4, 2), scale=0.01, mean=[1.0, 0.0, 0.0], std=[2.0, 1.0, 4.0])
    found = project.run(Data(path="pictures", images=how)).inputs["x"]
    expected = [[0.5, 0, 0], [-0.5, 0, 0.5], [0.5, 2, 0.5]]  # b/red.png, blue.bmp, gray.png
    assert found.shape == (3, 4, 2, 3)
    np.testing.assert_allclose(found[:, 0, 0], expected, atol=1e-6)
    assert np.ptp(found, axis=(1, 2)).max() == 0


def test_colour_order_and_dtype_of_images(project: Project) -> None:
    write_images(project.folder)
    project.model({"x": ("uint8", (None, 8, 4, 3))})
    how = Images(size=(8, 4), color="bgr", dtype="uint8")
    found = project.run(Data(path="pictures", images=how)).inputs["x"]
    assert found[0, 0, 0].tolist() == [0, 0, 200]
    project.model({"x": ("float32", (None, 8, 4, 1))})
    found = project.run(Data(path="pictures", images=Images(size=(8, 4), color="gray"))).inputs["x"]
    assert found[2, 0, 0].tolist() == [200]


def test_labels_of_images_go_by_name(project: Project) -> None:
    write_images(project.folder)
    project.model({"x": ("float32", (1, 8, 4, 3))})
    data = Data(path="pictures", images=Images(size=(8, 4)))
    (project.folder / "labels.csv").write_text(
        "gray.png,2\nblue.bmp,1\n\nextra.png,7\nb/red.png,0\n"
    )
    assert project.run(data, "labels.csv").labels.tolist() == [0, 1, 2]
    (project.folder / "labels.txt").write_text("b/red.png 5\ngray.png 3\nblue.bmp 4\n")
    assert project.run(data, "labels.txt", samples=2).labels.tolist() == [5, 4]
    (project.folder / "order.txt").write_text("7\n8\n9\n")
    assert project.run(data, "order.txt").labels.tolist() == [7, 8, 9]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("b/red.png,0\n", "2 samples have no label, such as 'blue.bmp'"),
        ("name,label\n", "labels.csv:1"),
        ("gray.png,2\ngray.png,1\n", "a name has two labels"),
        ("gray.png,2\n3\n", "some lines have a name"),
        ("gray.png,2,3\n", "3 columns"),
        ("1.5\n", "'1.5' is not a whole number"),
        ("\n", "the sample set is empty"),
    ],
)
def test_labels_that_are_wrong(project: Project, text: str, message: str) -> None:
    write_images(project.folder)
    project.model({"x": ("float32", (1, 8, 4, 3))})
    (project.folder / "labels.csv").write_text(text)
    data = Data(path="pictures", images=Images(size=(8, 4)))
    assert message in project.fails(data, "labels.csv")


def test_an_image_that_is_broken_is_named(project: Project) -> None:
    write_images(project.folder)
    project.model({"x": ("float32", (1, 8, 4, 3))})
    data = Data(path="pictures", images=Images(size=(8, 4)))
    red = project.folder / "pictures" / "b" / "red.png"
    red.write_bytes(red.read_bytes()[:50])
    for name, content in (("cut", red.read_bytes()), ("no image", b"hello"), ("empty", b"")):
        red.write_bytes(content)
        rendered = project.fails(data)
        assert "the image cannot be read" in rendered, name
        assert "red.png" in rendered, name
    Image.fromarray(np.zeros((8, 4), np.uint16)).save(red)
    assert "the image is of mode I;16" in project.fails(data)


@pytest.mark.parametrize(
    ("how", "message"),
    [
        (Images(size=(8, 4), mean=[1.0, 2.0]), "mean has 2 values for 3 channels"),
        (Images(size=(8, 4), std=[0.0]), "std has a zero"),
        (Images(size=(8, 4), dtype="uint8", scale=0.1), "uint8 values cannot be scaled"),
    ],
)
def test_scaling_that_cannot_be(project: Project, how: Images, message: str) -> None:
    write_images(project.folder)
    assert message in project.fails(Data(path="pictures", images=how))


def test_a_folder_without_images_is_empty(project: Project) -> None:
    (project.folder / "pictures").mkdir()
    data = Data(path="pictures", images=Images(size=(8, 4)))
    assert "the sample set is empty" in project.fails(data)


# TFRecords, written by TensorFlow


@pytest.fixture(scope="module")
def tf() -> Any:
    return pytest.importorskip("tensorflow", reason="TensorFlow writes the files that we read")


def example(tf: Any, **features: Any) -> bytes:
    kinds = {"f": ("float_list", tf.train.FloatList), "i": ("int64_list", tf.train.Int64List)}
    made = {}
    for name, value in features.items():
        if isinstance(value, bytes):
            made[name] = tf.train.Feature(bytes_list=tf.train.BytesList(value=[value]))
        else:
            field, kind = kinds[np.asarray(value).dtype.kind]
            made[name] = tf.train.Feature(**{field: kind(value=np.ravel(value).tolist())})
    serialised = tf.train.Example(features=tf.train.Features(feature=made)).SerializeToString()
    return bytes(serialised)


def write_records(tf: Any, path: Path, records: list[bytes], compression: str = "") -> None:
    with tf.io.TFRecordWriter(str(path), tf.io.TFRecordOptions(compression)) as writer:
        for record in records:
            writer.write(record)


def test_records_of_all_lengths_are_read_as_tensorflow_wrote_them(tf: Any, tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    lengths = [*range(20), *range(500, 530), 1023, 1024, 1025, 4097, 70_000, 1_000_001]
    records = [generator.bytes(length) for length in lengths]
    for name, compression in (("a.tfrecord", ""), ("b.tfrecord.gz", "GZIP")):
        write_records(tf, tmp_path / name, records, compression)
        assert list(read_records(tmp_path / name)) == records


@settings(max_examples=60)
@given(
    st.lists(st.integers(-(2**63), 2**63 - 1), max_size=40),
    st.lists(st.floats(width=32, allow_nan=False), max_size=40),
    st.binary(max_size=300),
    st.text(max_size=10),
)
def test_features_are_those_that_tensorflow_wrote(
    tf: Any, whole: list[int], real: list[float], raw: bytes, name: str
) -> None:
    record = example(
        tf, **{name: np.array(whole, np.int64), name + "f": np.array(real), name + "b": raw}
    )
    assert np.asarray(read_feature(record, name)).tolist() == whole
    np.testing.assert_array_equal(read_feature(record, name + "f"), np.array(real, np.float32))
    assert read_feature(record, name + "b") == [raw]


@given(st.binary(max_size=60))
def test_bytes_that_are_no_example_raise_the_two_errors_that_are_caught(record: bytes) -> None:
    with contextlib.suppress(KeyError, ValueError):
        read_feature(record, "x")


def test_a_tfrecord_of_numbers_bytes_and_images(project: Project, tf: Any, samples: Any) -> None:
    png = (project.folder / "p.png").as_posix()
    Image.fromarray(np.full((2, 3), 60, np.uint8)).save(png)
    records = [
        example(tf, x=x, raw=x.astype("<f4").tobytes(), y=np.array([i]), png=Path(png).read_bytes())
        for i, x in enumerate(samples)
    ]
    write_records(tf, project.folder / "a.tfrecord", records)
    for feature, more in (("x", {}), ("raw", {"dtype": "float32"})):
        data = Data(path=f"a.tfrecord#{feature}", shape=[2, 3], **more)
        found = project.run(data, "a.tfrecord#y")
        np.testing.assert_array_equal(found.inputs["x"], samples)
        assert found.labels.tolist() == list(range(10))
    assert "`shape:`" in project.fails("a.tfrecord#x")
    assert "6 values do not fill" in project.fails(Data(path="a.tfrecord#x", shape=[2, 2]))
    assert "raw bytes" in project.fails("a.tfrecord#raw")
    assert "there are: png, raw, x, y" in project.fails("a.tfrecord#z")
    project.model({"x": ("float32", (1, 2, 3, 1))})
    how = Images(size=(2, 3), color="gray", scale=0.5)
    found = project.run(Data(path="a.tfrecord#png", images=how), samples=2)
    assert np.unique(found.inputs["x"]).tolist() == [30]


def test_a_damaged_tfrecord_names_the_record(project: Project, tf: Any) -> None:
    path = project.folder / "a.tfrecord"
    write_records(tf, path, [example(tf, x=np.zeros(6)), example(tf, x=np.ones(6))])
    whole = path.read_bytes()
    second = 16 + struct.unpack("<Q", whole[:8])[0]
    for at, message in ((second, "record's length"), (second + 20, "the checksum of a record is")):
        damaged = bytearray(whole)
        damaged[at] ^= 1
        path.write_bytes(damaged)
        rendered = project.fails("a.tfrecord#x")
        assert message in rendered
        assert "record 1" in rendered
    for cut in (second + 5, second + 30, len(whole) - 1):
        path.write_bytes(whole[:cut])
        assert "cut off" in project.fails("a.tfrecord#x")
    path.write_bytes(b"")
    assert "empty" in project.fails("a.tfrecord#x")
    (project.folder / "b.tfrecord.gz").write_bytes(gzip.compress(whole)[:-9])
    assert "gzip" in project.fails("b.tfrecord.gz#x")
    (project.folder / "b.tfrecord.gz").write_bytes(whole)
    assert "gzip" in project.fails("b.tfrecord.gz#x")


# Functions


def test_a_function_gives_samples_and_labels(project: Project) -> None:
    (project.folder / "data.py").write_text(
        "import numpy as np\n"
        "def samples(count):\n    return np.ones((count, 2, 3))\n"
        "def named():\n    return {'x': np.zeros((4, 2, 3), np.uint8)}\n"
        "def labels():\n    return [1, 2, 3, 4]\n"
        "def nothing():\n    return None\n"
        "def ragged():\n    return np.array([[1], [1, 2]], dtype=object)\n"
    )
    data = Data(function="data.py:samples", arguments={"count": 4})
    found = project.run(data, "data.py:labels")
    assert found.inputs["x"].shape == (4, 2, 3)
    assert found.labels.tolist() == [1, 2, 3, 4]
    assert project.run("data.py:named").inputs["x"].dtype == np.float32
    assert "returned a dict" in project.fails("data.py:named", "data.py:named")


WRONG = {  # what a function returns -> the message, and the place after its file
    "None": ("the function returned None, not an array", "f"),
    "(x for x in [])": ("the function returned a generator, not an array", "f"),
    "iter([np.ones((2, 3))])": ("the function returned a list_iterator, not an array", "f"),
    "Path('x')": ("the function returned a PosixPath, not an array", "f"),
    "3.5": ("a single value", "f"),
    "'x.npy'": ("a single value", "f"),
    "(np.ones((4, 2, 3)), np.ones(4))": ("what the function returned is no array", "f"),
    "[[1.0], [1.0, 2.0]]": ("what the function returned is no array", "f"),
    "np.array([[1], [1, 2]], dtype=object)": ("samples of dtype object cannot be used", "f"),
    "np.array(['a', 'b'])": ("samples of dtype <U1 cannot be used", "f"),
    "np.full((4, 2, 3), np.nan)": ("sample 0 holds NaN", "f"),
    "np.stack([np.ones((2, 3)), np.full((2, 3), np.inf)])": ("sample 1 holds infinity", "f"),
    "np.ones((0, 2, 3))": ("the evaluation set is empty", "f"),
    "[]": ("the evaluation set is empty", "f"),
    "{'x': np.ones((0, 2, 3))}": ("the evaluation set is empty", "f: x"),
    "{}": ("the function returned an empty dict", "f"),
    "{'X': np.ones((4, 2, 3))}": ("the model has no input 'X'", "f: X"),
    "{'x': None}": ("the function returned None, not an array", "f: x"),
    "{'x': np.ones((4, 2, 3)), 'y': np.ones(4)}": ("the model has no input 'y'", "f: y"),
    "np.ones((4, 3, 2))": ("a sample has shape (3, 2), input 'x' wants (2, 3)", "f"),
    "np.ones((2, 3))": ("a sample has shape (3,), input 'x' wants (2, 3)", "f"),
}


@pytest.mark.parametrize("returned", WRONG)
def test_what_a_function_returns_wrongly_is_one_message(project: Project, returned: str) -> None:
    message, place = WRONG[returned]
    code = f"import numpy as np\nfrom pathlib import Path\ndef f():\n    return {returned}\n"
    (project.folder / "data.py").write_text(code)
    said = project.fails("data.py:f").splitlines()
    assert said[0].startswith(f"error: {message}")
    assert said[1] == f"   at: {project.folder}/data.py:{place}"


def test_wrong_labels_and_arrays_of_several_inputs_are_one_message(project: Project) -> None:
    project.model({"a": ("float32", (1, 2)), "b": ("float32", (1, 2))})
    (project.folder / "data.py").write_text(
        "import numpy as np\n"
        "def pair(m=4, n=4):\n    return {'a': np.ones((m, 2)), 'b': np.ones((n, 2))}\n"
        "def alone():\n    return np.ones((4, 2))\n"
        "def half():\n    return {'a': np.ones((4, 2))}\n"
        "def labels(n):\n    return np.full(n, np.nan) if n == 4 else np.arange(n)\n"
    )
    uneven = Data(function="data.py:pair", arguments={"m": 4, "n": 3})
    assert "the numbers of samples differ: a 4, b 3" in project.fails(uneven)
    assert "one sample array for a model with 2 inputs" in project.fails("data.py:alone")
    assert "no samples for input b" in project.fails("data.py:half")
    for count, message in (
        (5, "the numbers of samples differ: a 4, b 4, labels 5"),
        (0, "the array of labels is empty"),
        (4, "sample 0 holds NaN"),
    ):
        labels = Data(function="data.py:labels", arguments={"n": count})
        said = project.fails("data.py:pair", labels)
        assert message in said
        assert f"{project.folder}/data.py:labels" in said


# Damage of any kind


@pytest.fixture(scope="module")
def whole_files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """One small file of each format, as bytes."""
    folder = tmp_path_factory.mktemp("whole")
    pixels = np.random.default_rng(0).integers(0, 255, (9, 7, 3), dtype=np.uint8)
    np.save(folder / "a.npy", pixels)
    np.savez(folder / "b.npz", x=pixels)
    np.savez_compressed(folder / "c.npz", x=pixels)
    (folder / "d.tfrecord.gz").write_bytes(gzip.compress(bytes(200)))
    for ending in ("png", "jpg", "bmp", "gif", "tiff", "webp"):
        Image.fromarray(pixels).save(folder / f"image.{ending}")
    return {path.name: path.read_bytes() for path in folder.iterdir()}


# Pillow warns of some damage before it raises for it, and says when metadata alone is damaged.
@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
@settings(max_examples=400, deadline=None)
@given(st.data())
def test_a_damaged_file_is_a_fault_and_nothing_else(
    whole_files: dict[str, bytes], tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    name = data.draw(st.sampled_from(sorted(whole_files)))
    damaged = bytearray(whole_files[name])
    place = st.integers(0, len(damaged) - 1)
    for at, byte in data.draw(st.dictionaries(place, st.integers(0, 255), max_size=5)).items():
        damaged[at] = byte
    path = tmp_path_factory.getbasetemp() / f"damaged-{name}"
    path.write_bytes(damaged[: data.draw(st.integers(0, len(damaged)))])
    if name.startswith("image"):
        with contextlib.suppress(StepFailed):
            read_image(path, Images(size=(4, 4)))
    else:
        sources, _ = plan_sources(f"{path}#x" if "tfrecord" in name else str(path))
        assert isinstance(inspect(path, sources[""]), Header | list)


# Planning and the cheap look


def test_planning_names_files_and_keeps_what_the_recipe_wrote() -> None:
    sources, files = plan_sources(Data(inputs={"a": "d/in.npz#p", "b": "in.tfrecord#q"}), "labels")
    assert files == {"labels.input.a": "d/in.npz", "labels.input.b": "in.tfrecord"}
    assert sources["a"].array == "p"
    assert sources["b"].feature == "q"
    data = Data(function="d/f.py:g", arguments={"k": 1}, files=["a.bin", "more"])
    sources, files = plan_sources(data)
    assert files == {"code": "d/f.py", "file.0": "a.bin", "file.1": "more"}
    assert sources[""] == Source(format="function", input="code", function="g", arguments={"k": 1})
    assert all(is_code_key(key) for key in ("code", "labels.code", "data.code"))
    _, files = plan_sources(Data(inputs={"code": "x.npy"}), "data")
    assert not any(is_code_key(key) for key in ("data", "input.code", *files))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ("samples.pkl", "cannot tell how these samples are read"),
        ("pictures", "a folder needs `images:`"),
        ("x.npy#a", "'#a' has no meaning for npy data"),
        ("x.tfrecord", "needs the name of a feature"),
        (Data(), "found none of them"),
        (Data(path="x.npy", shape=[2]), "`shape` has no meaning for npy data"),
        (Data(path="x.npy", images=Images(size=(2, 2))), "`images` has no meaning"),
        (Data(function="f.py:g", dtype="int8"), "`dtype` has no meaning for function data"),
        (Data(path="x.npz#a", arguments={"n": 1}), "`arguments` has no meaning"),
        (Data(path="x.npy", function="f.py:g"), "found path and function"),
    ],
)
def test_data_that_cannot_be_planned(data: str | Data, message: str) -> None:
    with pytest.raises(FilesError) as failure:
        plan_sources(data)
    assert message in failure.value.render()


def look(project: Project, data: str | Data) -> Any:
    sources, files = plan_sources(data)
    return inspect(project.folder / files["data"], sources[""])


def test_the_cheap_look_at_headers(project: Project, samples: Any) -> None:
    write_images(project.folder)
    assert look(project, "x.npy") == Header(10, (2, 3), "float32")
    assert look(project, "all.npz#y") == Header(10, (), "int64")
    pictures = Data(path="pictures", images=Images(size=(8, 4)))
    assert look(project, pictures) == Header(3, (8, 4, 3), "float32")
    assert inspect(Path("data.py"), Source(format="function", function="f")) == Header()


def test_the_cheap_look_returns_faults(project: Project, samples: Any) -> None:
    samples[3, 1, 1] = np.nan
    np.save(project.folder / "nan.npy", samples)
    write_images(project.folder)
    (project.folder / "pictures" / "blue.bmp").write_bytes(b"BM")
    pictures = Data(path="pictures", images=Images(size=(8, 4)))
    for data, message in (
        ("nan.npy", "sample 3 holds NaN"),
        ("all.npz", "the file has 2 arrays"),
        ("missing.npy", "no such file"),
        (pictures, "the image cannot be read"),
    ):
        (fault,) = look(project, data)
        assert message in fault.message


@pytest.mark.kws
@pytest.mark.skipif(not KWS.exists(), reason=f"no keyword-spotting samples at {KWS}")
def test_real_samples(tmp_path: Path) -> None:
    project = Project(tmp_path)
    project.model({"input_1": ("float32", (1, 49, 10, 1))})
    found = project.run(f"{KWS}#x", f"{KWS}#y", samples=200)
    assert found.inputs["input_1"].shape == (200, 49, 10, 1)
    assert found.labels.max() == 11
