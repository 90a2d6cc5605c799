"""The keyword-spotting variants, served: 1000 samples give what the check step gave."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import yaml
from serving import TARGET, served

from tf2aif import tasks
from tf2aif.build import Build
from tf2aif.client.address import read_address
from tf2aif.client.run import Options, open_server, run
from tf2aif.client.samples import read_samples
from tf2aif.engines import engine_module
from tf2aif.engines.batches import run_batches
from tf2aif.record import read_record
from tf2aif.workers import Workers

pytestmark = pytest.mark.kws

RECIPE = Path(__file__).parent / "recipes" / "kws.yaml"
VARIANTS = [f"{TARGET}-{precision}" for precision in ("fp32", "int8", "int8-io")]


@pytest.fixture(scope="module")
def built_kws(kws: Path, tmp_path_factory: pytest.TempPathFactory, warm: Workers) -> Iterator[Path]:
    """The folder of the recipe's variants for this machine, built by its own pipeline."""
    root = tmp_path_factory.mktemp("kws")
    recipe = yaml.safe_load(RECIPE.read_text())
    recipe["model"]["path"] = str(kws / "model")
    recipe["calibration"]["data"] = f"{kws / 'samples.npz'}#x"
    recipe["evaluation"] |= {
        "data": f"{kws / 'samples.npz'}#x",
        "labels": f"{kws / 'samples.npz'}#y",
    }
    wanted = ["fp32", "int8", "int8-io"]
    recipe["targets"] = {target: {"precisions": wanted} for target in ("cpu", "arm")}
    (root / "recipes").mkdir()
    (root / "recipes" / "kws.yaml").write_text(yaml.safe_dump(recipe))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TF2AIF_CACHE", str(root / "cache"))
        build = Build.load([root / "recipes"], root, workers=warm)
        tasks.run(build)
        assert not build.failures
        yield root / "build" / "kws"


def test_the_figures_that_the_suite_asks_for(built_kws: Path) -> None:
    found = {}
    for precision in ("fp32", "int8", "int8-io"):
        record = read_record(built_kws / f"{TARGET}-{precision}")
        assert record is not None
        assert record.accuracy is not None
        assert record.accuracy.samples == 1000
        found[precision] = record.accuracy.variant
    assert found["fp32"] == pytest.approx(0.913, abs=0.001)
    assert min(found["int8"], found["int8-io"]) >= 0.905


@pytest.mark.parametrize("precision", ["fp32", "int8", "int8-io"])
def test_arm_has_the_bytes_of_cpu(built_kws: Path, precision: str) -> None:
    files = [built_kws / f"{target}-{precision}" / "artifact" for target in ("cpu", "arm")]
    cpu, arm = [{path.name: path.read_bytes() for path in folder.iterdir()} for folder in files]
    assert cpu == arm
    assert "model.tflite" in cpu


@pytest.mark.parametrize("variant", VARIANTS)
def test_accuracy_of_1000_samples_to_the_sample(built_kws: Path, variant: str) -> None:
    record = read_record(built_kws / variant)
    assert record is not None
    assert record.accuracy is not None
    steps = built_kws / ".steps"
    with served(built_kws / variant) as url:
        for encoding in ("binary", "json"):
            asked = Options(
                urls=(url,),
                samples=steps / "evaluation",
                reference=steps / "reference",
                encoding=encoding,
                loads=(),
            )
            (server,) = run(asked).servers
            found = server.accuracy
            assert found is not None
            assert found.samples == record.accuracy.samples == 1000
            assert found.right == round(record.accuracy.variant * 1000)
            assert (found.served, found.source) == (
                record.accuracy.variant,
                record.accuracy.source,
            )


def test_every_answer_is_the_engines_own(built_kws: Path) -> None:
    variant = built_kws / f"{TARGET}-int8"
    record = read_record(variant)
    assert record is not None
    samples = read_samples(built_kws / ".steps" / "evaluation")
    engine = engine_module(record.engine["name"]).load(variant / "artifact")
    wanted = run_batches(engine, samples.inputs)
    engine.close()
    with served(variant) as url:
        subject = open_server(read_address(url), samples, binary=True, timeout_s=30, ready_s=5)
        answers = subject.answers()
        subject.close()
    for name, array in wanted.items():
        np.testing.assert_array_equal(answers[name], array)
