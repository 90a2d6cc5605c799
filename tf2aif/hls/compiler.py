"""The C simulation of an HLS project: its sources compiled by g++ into one library.

The library is what an engine loads: it exports one function, needs nothing but the C library, and
its bytes depend on the sources and the compiler alone.
"""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from pathlib import Path

from ..errors import StepFailed
from .project import TOP
from .stages import Pipeline

COMPILER = "g++"
LIBRARY = "simulation.so"

FLAGS = (
    "-std=c++17",
    "-O2",
    "-fPIC",
    "-shared",
    "-w",  # the templates' warnings are not the user's
    # Two libraries in one process must not share the static buffers of a template.
    "-fno-gnu-unique",
    "-fvisibility=hidden",
    "-fvisibility-inlines-hidden",
    "-ffp-contract=off",
    # What runs it has a C library, and maybe no C++ library.
    "-static-libstdc++",
    "-static-libgcc",
    "-frandom-seed=tf2aif",
    "-Wl,--build-id=none",
    "-Wl,-Bsymbolic",
    "-s",
)


def find_compiler() -> str:
    """The path of g++. Raises StepFailed where there is none."""
    path = shutil.which(COMPILER)
    if path is None:
        raise StepFailed(
            "no g++ on PATH, which compiles the C simulation",
            hint="install it (Debian and Ubuntu: apt-get install g++)",
        )
    return path


def compile_library(project: Path, pipeline: Pipeline, headers: Path, out: Path) -> Path:
    """Compile the project's C simulation into `simulation.so` in the folder `out`.

    `headers` is where ap_fixed.h is. Raises StepFailed where there is no compiler, or it fails or
    is ended from outside; no library is left then.
    """
    library = (out / LIBRARY).absolute()
    compiler = find_compiler()
    with tempfile.TemporaryDirectory() as scratch:
        sources = _sources(project, pipeline, Path(scratch))
        command = [compiler, *FLAGS, "-I.", "-Ifirmware", f"-I{headers}", f"-I{scratch}"]
        command += [f"-ffile-prefix-map={scratch}=.", f"-ffile-prefix-map={headers}=ap_types"]
        command += [*sources, "-o", str(library)]
        print("compiling the C simulation: " + " ".join(command), flush=True)
        done = subprocess.run(
            command, cwd=project, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, check=False
        )
    message = done.stderr.decode("utf-8", "replace")
    print(message, flush=True)
    if done.returncode:
        library.unlink(missing_ok=True)
        raise _failed(done.returncode, message)
    return library


def _sources(project: Path, pipeline: Pipeline, scratch: Path) -> list[str]:
    """The project's sources, its top function with the weights inside, and our own door."""
    top = (project / "firmware" / f"{TOP}.cpp").read_text("utf-8")
    (scratch / "weights.h").write_text(_weights(project / "firmware" / "weights"), "ascii")
    include = '#include "weights.h"\n'
    made = include + top.replace("nnet::load_weights_from_txt<", "tf2aif::load_weights<")
    (scratch / f"{TOP}.cpp").write_text(made, "utf-8")
    (scratch / "door.cpp").write_text(_door(pipeline), "ascii")
    names = [f"firmware/{TOP}_axi.cpp", f"{TOP}_bridge.cpp"]
    written = [str(scratch / f"{TOP}.cpp"), str(scratch / "door.cpp")]
    return [*written, *(name for name in names if (project / name).is_file())]


def _weights(folder: Path) -> str:
    """A header with all weights as plain doubles, and the function that reads them.

    hls4ml's simulation reads files whose path is compiled in; as constants of their own types the
    weights would take the compiler minutes.
    """
    files = sorted(folder.glob("*.txt"))
    arrays = "\n".join(
        f"static const double {f.stem}[] = {{{f.read_text().strip()}}};" for f in files
    )
    table = ", ".join(f'{{"{f.name}", values::{f.stem}}}' for f in files)
    return f"""#include <cstddef>
#include <cstring>
namespace tf2aif {{
namespace values {{
{arrays}
}}
struct Entry {{ const char *name; const double *values; }};
static const Entry entries[] = {{{table or '{"", nullptr}'}}};
template <class T, std::size_t SIZE> void load_weights(T *weights, const char *name) {{
    for (const Entry &entry : entries)
        if (!std::strcmp(entry.name, name))
            for (std::size_t i = 0; i < SIZE; i++) weights[i] = T(entry.values[i]);
}}
}}
"""


def _door(pipeline: Pipeline) -> str:
    """The one exported function: a number of samples through hls4ml's own bridge.

    It takes arrays of pointers: to each input's and each output's samples, one after the other.
    """
    sizes = [pipeline.named()[name].size for name in pipeline.inputs.values()]
    sizes_out = [pipeline.named()[output.stage].size for output in pipeline.outputs]
    parameters = ", ".join(["double *"] * (len(sizes) + len(sizes_out)))
    arguments = [f"in[{i}] + sample * {size}" for i, size in enumerate(sizes)]
    arguments += [f"out[{i}] + sample * {size}" for i, size in enumerate(sizes_out)]
    return f"""#include <cstddef>
extern "C" void {TOP}_double({parameters});
extern "C" __attribute__((visibility("default")))
void tf2aif_run(std::size_t samples, double **in, double **out) {{
    for (std::size_t sample = 0; sample < samples; sample++)
        {TOP}_double({", ".join(arguments)});
}}
"""


def _failed(code: int, message: str) -> StepFailed:
    # cc1plus is killed for memory, and the driver, which lives on, says so.
    if code < 0 or "Killed" in message or "cannot allocate memory" in message.lower():
        return StepFailed(
            f"g++ was ended from outside (exit {code}), most often for want of memory",
            at=_first_error(message),
            hint="give the machine more memory, or take io_type: io_stream with a higher "
            "reuse_factor, or a smaller network",
        )
    return StepFailed(
        f"g++ cannot compile the C simulation (exit {code})",
        at=_first_error(message),
        hint="the whole message is in the log",
    )


def _first_error(message: str) -> str:
    lines = [line for line in message.splitlines() if "error" in line.lower() or "Killed" in line]
    return lines[0].strip()[:300] if lines else message.strip()[-300:]
