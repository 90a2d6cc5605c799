"""What a window costs in joules, by the counters of this machine that can be read.

Counters are of whole packages and devices. Subjects take turns, so a window's joules are those of
its subject, of what the machine needs anyway, and of what else runs.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence

from ..client.figures import STABLE_WINDOWS
from ..client.load import Load, Pace, Subject, Window
from ..serve.energy import Source, find_sources
from .record import Energy

NO_COUNTER = (
    "no counter of energy can be read: RAPL (/sys/class/powercap) is not there, as on most virtual "
    "machines, or is root's"
)
NO_GPU_COUNTER = "NVML tells no energy of the GPU"
EMULATED = "an emulation's energy is none of the device's"


class Metered:
    """A subject whose windows are metered."""

    def __init__(self, subject: Subject, sources: Sequence[Source]) -> None:
        self.name = subject.name
        self.joules: list[dict[str, float]] = []
        """By counter, of each window since `restart`."""
        self.samples: list[int] = []
        self._subject = subject
        self._sources = sources

    def restart(self) -> None:
        """Forget the windows of another scenario."""
        self.joules.clear()
        self.samples.clear()

    def warm_up(self, load: Load) -> Pace:
        """As the subject does."""
        return self._subject.warm_up(load)

    def run(self, load: Load, pace: Pace, number: int) -> Window:
        """As the subject does, between two looks at the counters."""
        for source in self._sources:
            source.joules()  # what was used since the last look is not ours
        window = self._subject.run(load, pace, number)
        self.joules.append({source.name: source.joules() for source in self._sources})
        self.samples.append(window.samples)
        return window

    def close(self) -> None:
        """As the subject does."""
        self._subject.close()

    def joules_per_sample(self, names: Sequence[str]) -> float | None:
        """Over the windows that figures are of, all these counters together."""
        last, samples = self.joules[-STABLE_WINDOWS:], sum(self.samples[-STABLE_WINDOWS:])
        if not samples:
            return None
        return sum(window[name] for window in last for name in names) / samples


class Meter:
    """The counters of this machine, and which of them a variant's work shows in."""

    def __init__(self, sources: Sequence[Source] | None = None) -> None:
        self.sources = find_sources() if sources is None else sources

    def names_for(self, labels: Mapping[str, str]) -> tuple[str, ...]:
        """The counters for a variant with these labels: all packages, and its GPU if it needs one.

        A GPU that is not used would count as much as one that is.
        """
        found = [each.name for each in self.sources if each.name.startswith("rapl:")]
        gpu = f"nvml:{_first_gpu()}"
        if needs_gpu(labels) and any(each.name == gpu for each in self.sources):
            found.append(gpu)
        return tuple(found)

    def reason(self, labels: Mapping[str, str]) -> str:
        """Why there is no energy of such a variant; empty: there is."""
        names = self.names_for(labels)
        if needs_gpu(labels) and not any(name.startswith("nvml:") for name in names):
            return NO_GPU_COUNTER
        return "" if names else NO_COUNTER


def energy_of(
    names: Sequence[str], engine: Metered, server: Metered, native: Metered | None
) -> Energy:
    """Joules for one sample of the scenario that was last measured."""
    return Energy(
        sources=tuple(names),
        engine_j=engine.joules_per_sample(names),
        server_j=server.joules_per_sample(names),
        native_j=native.joules_per_sample(names) if native else None,
    )


def needs_gpu(labels: Mapping[str, str]) -> bool:
    """Whether a variant runs on a GPU, by the labels that its node must have."""
    return labels.get("nvidia.com/gpu.present") == "true"


def _first_gpu() -> str:
    """The number of the GPU that a process uses by itself."""
    first = os.environ.get("CUDA_VISIBLE_DEVICES", "0").partition(",")[0].strip()
    return first if first.isdigit() else "0"
