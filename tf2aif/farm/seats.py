"""Who runs a step: the machines of the farm that offer its label, or this one as without a farm."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping

from msgspec import Struct

from ..facts import Facts
from ..graph import Step
from ..machine import this_platform
from ..toolchains import Identity, Missing, environment_facts
from .errand import outside
from .offer import CODE, CPU, GPU, MEMORY, Offer, label_of, machine_label, needs_gpu
from .source import version

Look = Callable[[str], Identity | Missing | None]
"""What a toolchain is here; None where the project has given it a place of its own."""


class Seat(Struct, frozen=True, kw_only=True):
    """Where in the farm a step belongs."""

    label: str
    resources: dict[str, float]
    """What it takes of the machine that runs it."""
    facts: dict[str, object]
    """Of the place that it runs at, as they go into its key."""
    here: bool
    """This machine has the very same toolchain."""


class Seats:
    """The seats of one build. They stay as they are while it lasts: they are in its keys."""

    def __init__(
        self, offers: Iterable[Offer], look: Look, chosen: Mapping[str, str] | None = None
    ) -> None:
        """`chosen`: toolchain -> how the label begins that is wanted of it."""
        ordered = sorted(offers, key=lambda offer: offer.machine)
        self.offers = [offer for offer in ordered if offer.version == version()]
        self.strangers = [offer for offer in ordered if offer.version != version()]
        """With another tf2aif: nothing is sent there."""
        self._look = look
        self._chosen = dict(chosen or {})
        self._known: dict[object, Seat | None] = {}
        self.kept: set[str] = set()
        """Variables, or code, for which steps run here though a machine has their toolchain."""
        self._lock = threading.Lock()

    @property
    def platforms(self) -> frozenset[str]:
        """Those of the farm's machines that this one is not."""
        return frozenset(offer.platform for offer in self.offers) - {this_platform()}

    def seat(self, step: Step) -> Seat | None:
        """Where the step runs in the farm; None: here, or nowhere."""
        if outside(step.options):
            return None
        variables = environment_facts(step.environment)
        code = bool(step.code or variables or step.environment)
        memory = step.limits.memory_mb
        wants = (step.toolchain, step.engines, step.device, step.machine, step.platform)
        with self._lock:
            known = (*wants, code, memory)
            if known not in self._known:
                self._known[known] = self._choose(step, code=code)
                if code and self._known[known] is None and self._choose(step, code=False):
                    self.kept |= {*variables} or {"the recipe's own code"}
            return self._known[known]

    def explain(self, toolchain: str) -> str:
        """What the machines offer in the place of a toolchain that none of them has."""
        words = [
            f"{offer.machine} ({offer.bids[toolchain].label})"
            if toolchain in offer.bids
            else offer.machine
            for offer in self.offers
        ]
        words += [f"{offer.machine} (with tf2aif {offer.version})" for offer in self.strangers]
        if not words:
            return "no machine has joined the farm"
        return f"machines seen in the farm: {', '.join(words)}"

    def _choose(self, step: Step, *, code: bool) -> Seat | None:
        own = [self._look(name) for name in (step.toolchain, *step.engines)]
        if None in own:
            return None  # the project says where it runs
        able = [offer for offer in self.offers if _can(offer, step, code=code)]
        ours = own[0]
        same_platform = step.platform in (None, this_platform())
        here = same_platform and not any(isinstance(tool, Missing) for tool in own)
        if here and step.machine:
            return None  # what is measured here is asked of this machine
        wanted = self._chosen.get(step.toolchain)
        if here and wanted is None and isinstance(ours, Identity):
            label = label_of(step.toolchain, ours.facts())
            able = [offer for offer in able if offer.bids[step.toolchain].label == label]
        elif wanted is not None:
            able = [o for o in able if o.bids[step.toolchain].label.startswith(wanted)]
        if not able:
            return None
        return _seat(step, min(able, key=lambda offer: _rank(offer, step)), ours, code=code)


def _can(offer: Offer, step: Step, *, code: bool) -> bool:
    return (
        all(name in offer.bids for name in (step.toolchain, *step.engines))
        and step.platform in (None, offer.platform)
        and (step.device is None or step.device in offer.devices)
        and (offer.code or not code)
        and (step.limits.memory_mb or 0) <= offer.memory_mb
    )


def _rank(offer: Offer, step: Step) -> tuple[str, ...]:
    """The same for every step of a build, so that what needs one GPU finds one GPU."""
    return (offer.devices.get("nvidia", {}).get("gpu", ""), offer.bids[step.toolchain].label)


def _seat(step: Step, offer: Offer, ours: object, *, code: bool) -> Seat:
    bid = offer.bids[step.toolchain]
    resources = {CPU: 1.0, bid.label: 1.0}
    resources |= {offer.bids[name].label: 1.0 for name in step.engines}
    if code:
        resources[CODE] = 1.0
    if any(needs_gpu(name) for name in (step.toolchain, *step.engines)):
        resources[GPU] = 1.0
    if step.limits.memory_mb:
        resources[MEMORY] = float(step.limits.memory_mb)
    if step.platform is not None:
        resources[offer.platform.replace("/", "-")] = 1.0
    if step.machine:
        resources[machine_label(offer.about)] = 1.0
    same = isinstance(ours, Identity) and label_of(step.toolchain, ours.facts()) == bid.label
    return Seat(
        label=bid.label, resources=resources, facts=place_facts(step, offer), here=bool(same)
    )


def place_facts(step: Step, offer: Offer) -> Facts:
    """What `freshness.place_facts` says of the step on the machine of the offer."""
    facts: Facts = {f"toolchain.{n}": v for n, v in offer.bids[step.toolchain].facts.items()}
    if step.device:
        device = offer.devices.get(step.device, {})
        facts |= {f"device.{name}": value for name, value in device.items()}
    return facts | (offer.about if step.machine else {})
