"""From recipes and targets to the steps that make their variants: pure, no I/O, no TensorFlow.

Two variants that need the same step (the same kind, options and inputs) get the same node, so it
runs once. A node's name is for people; its options, files and inputs are what it is.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any, Literal

import msgspec

from .errors import Fault, FilesError, Tf2aifError
from .facts import key
from .oci.planning import ImageInputs, ImageOf, ImagePlan, image_platform, plan_image
from .sources import Source, is_code_key, plan_sources
from .spec.load import LoadedRecipe, overridden, pipeline
from .spec.recipe import Calibration, Evaluation, Recipe, TargetOverride
from .spec.service import hook_files
from .spec.target import Emulation, EngineUse, Limits, StepUse, Target
from .steps import STEPS, step_module


class Step(msgspec.Struct, frozen=True, kw_only=True):
    """A node of the graph: one action with its options, files and inputs."""

    id: str
    kind: str
    recipe: str
    folder: str  # the recipe's own: what the user's code calls "here"
    module: str
    version: int
    toolchain: str
    options: dict[str, Any] = {}
    files: dict[str, str] = {}  # name of an input -> absolute path of the user's file or folder
    inputs: dict[str, str] = {}  # name of an input -> id of the step that makes it
    code: str | None = None  # the user's code that it runs, if any
    environment: tuple[str, ...] = ()  # variables that this code may see
    seed: int | None = None
    threads: int | None = None  # of TensorFlow in its process, where the engine's options say
    limits: Limits = Limits()
    alone: bool = False  # it measures time: nothing else runs meanwhile
    machine: bool = False  # what it makes holds for this machine only
    engines: tuple[str, ...] = ()  # toolchains that it needs besides; their versions are observed
    device: str | None = None  # the kind of device whose facts go into its key
    platform: str | None = None  # where a farm has such machines: it runs on one of them


class Emulated(msgspec.Struct, frozen=True, kw_only=True):
    """A variant as it runs on any machine, before the device's compiler has seen it."""

    engine: str
    engine_options: dict[str, Any]
    exact: bool
    artifact: str
    check: str
    gate: str


class Variant(msgspec.Struct, frozen=True, kw_only=True):
    """Recipe x target x precision, and the steps that make it."""

    recipe: str
    target: str
    precision: str
    platform: str
    engine: str
    engine_options: dict[str, Any]
    baseline: bool
    labels: dict[str, str]
    allowed_drop: float
    artifact: str
    check: str
    latency: str | None = None
    emulation: Emulated | None = None
    calibration: str | None = None
    random_calibration: bool = False
    image: ImagePlan | None = None
    batch: int | Literal["free", "none"] = 1
    hook_files: dict[str, str] = {}  # path below `hooks/` -> absolute path
    hooks: str | None = None  # of these, the one with the functions

    @property
    def name(self) -> str:
        """As people write it: `cpu-int8`."""
        return f"{self.target}-{self.precision}"

    @property
    def id(self) -> str:
        """As people write it with its recipe: `kws/cpu-int8`."""
        return f"{self.recipe}/{self.name}"

    @property
    def runs_emulated(self) -> bool:
        """Its engine is an emulation, on the device's own host too."""
        return self.emulation is not None and self.emulation.engine == self.engine

    @property
    def steps(self) -> tuple[str, ...]:
        """The steps whose results go into its record."""
        image = self.image.steps if self.image else ()
        return (*self.emulated_steps, *self.device_steps, *image)

    @property
    def device_steps(self) -> tuple[str, ...]:
        """The artifact for the device, and what is measured of it."""
        return tuple(s for s in (self.artifact, self.check, self.latency) if s)

    @property
    def needed_steps(self) -> tuple[str, ...]:
        """Without these it is a bundle. How fast it is may stay unknown."""
        return tuple(name for name in self.steps if name != self.latency)

    @property
    def emulated_steps(self) -> tuple[str, ...]:
        """What can be made on any machine, where the target has an emulation."""
        one = self.emulation
        return (one.artifact, one.check, one.gate) if one else ()


class Graph(msgspec.Struct, frozen=True):
    """All steps, each after what it needs, and the variants."""

    steps: dict[str, Step]
    variants: dict[str, Variant]

    def needs(self, ids: Iterable[str]) -> tuple[str, ...]:
        """These steps and all that they rest on, in an order in which they can run."""
        wanted = set(ids)
        for step in reversed(self.steps.values()):
            if step.id in wanted:
                wanted.update(step.inputs.values())
        return tuple(name for name in self.steps if name in wanted)

    def only(self, variants: Iterable[str]) -> Graph:
        """The part that makes these variants."""
        kept = {name: self.variants[name] for name in variants}
        steps = self.needs(s for v in kept.values() for s in v.steps)
        return Graph({name: self.steps[name] for name in steps}, kept)


def plan(
    recipes: Iterable[LoadedRecipe],
    targets: Mapping[str, Target],
    *,
    only_targets: Iterable[str] = (),
    platform: str,
    images: ImageInputs | None = None,
    farm: Collection[str] = (),
) -> Graph:
    """The graph that makes every variant the recipes ask for, and with `images` theirs.

    `platform` is this machine's, as OCI names it: a variant's speed is measured only where it
    would run. `farm` are platforms of other machines that can run steps: what concerns a device of
    theirs runs there. Raises FilesError where a recipe asks for what its targets do not have.
    """
    steps: dict[str, Step] = {}
    variants: dict[str, Variant] = {}
    chosen = frozenset(only_targets)
    for loaded in recipes:
        planner = _Planner(loaded, targets, platform, images, frozenset(farm))
        for variant in planner.variants(chosen):
            variants[variant.id] = variant
        steps.update(planner.steps)
    return Graph(steps, variants)


class _Planner:
    """The steps of one recipe, each made once."""

    def __init__(
        self,
        loaded: LoadedRecipe,
        targets: Mapping[str, Target],
        platform: str,
        images: ImageInputs | None,
        farm: frozenset[str],
    ) -> None:
        self.loaded = loaded
        self.recipe: Recipe = loaded.recipe
        self.folder = str(loaded.folder)
        self.targets = targets
        self.platform = platform
        self.images = images
        self.farm = farm
        self.steps: dict[str, Step] = {}
        self._known: dict[str, str] = {}

    def variants(self, only: frozenset[str]) -> Iterator[Variant]:
        """Every variant of the recipe, its steps planned on the way."""
        wanted = self.recipe.targets
        overrides: Mapping[str, TargetOverride | None] = (
            wanted if isinstance(wanted, dict) else dict.fromkeys(wanted)
        )
        for name, override in overrides.items():
            if not only or name in only:
                yield from self._of_target(name, override or TargetOverride())

    def _of_target(self, name: str, override: TargetOverride) -> Iterator[Variant]:
        target = self.targets[name]
        precisions = override.precisions or list(target.precisions)
        for precision in precisions:
            uses = tuple(overridden(use, override) for use in pipeline(target, precision))
            yield self._variant(name, target, precision, uses, override)

    def _variant(
        self,
        name: str,
        target: Target,
        precision: str,
        uses: tuple[StepUse, ...],
        override: TargetOverride,
    ) -> Variant:
        calibration = override.calibration or self.recipe.calibration
        label = f"{name}-{precision}"
        model = self._import()
        before, compilers = _split(uses, target)
        artifact = self._chain(name, precision, before, model, calibration, target.limits)
        emulation = self._emulation(label, name, precision, artifact, target)
        used = "calibration" in self._ancestry(artifact)
        artifact = self._chain(
            name, precision, compilers, artifact, calibration, target.limits, emulation
        )
        engine = {**target.engine.options, **override.engine}
        here = target.platform in {self.platform, *self.farm} and not target.runs_emulated
        check = self._check(
            f"check-{label}", artifact, target.engine, engine, target.limits, **self._there(target)
        )
        files, hooks = hook_files(self.recipe.service, self.folder)
        return Variant(
            recipe=self.loaded.name,
            target=name,
            precision=precision,
            platform=target.platform,
            engine=target.engine.name,
            engine_options=engine,
            baseline=target.baseline,
            labels=target.labels,
            allowed_drop=self._allowed_drop(name, precision),
            artifact=artifact,
            check=check,
            latency=self._latency(label, artifact, model, target, engine) if here else None,
            emulation=emulation,
            calibration=self._calibration(calibration) if used and calibration else None,
            random_calibration=used and calibration == "random",
            image=self._image(name, target, precision, engine, artifact, check, emulation),
            batch=self.recipe.model.batch,
            hook_files=files,
            hooks=hooks,
        )

    def _emulation(
        self, label: str, name: str, precision: str, artifact: str, target: Target
    ) -> Emulated | None:
        """The check by emulation, and the gate that is held with it."""
        engine = target.emulation
        if engine is None:
            return None
        check = self._check(f"emulate-{label}", artifact, engine, engine.options, target.limits)
        gate = self._add(
            f"gate-{label}",
            "gate",
            options={"allowed_drop": self._allowed_drop(name, precision)},
            inputs={"check": check},
        )
        return Emulated(
            engine=engine.name,
            engine_options=engine.options,
            exact=engine.exact,
            artifact=artifact,
            check=check,
            gate=gate,
        )

    def _image(
        self,
        name: str,
        target: Target,
        precision: str,
        engine: dict[str, Any],
        artifact: str,
        check: str,
        emulation: Emulated | None,
    ) -> ImagePlan | None:
        """The steps of its image. Of what an emulation has checked, the device need not be here."""
        if self.images is None:
            return None
        if emulation:
            check = emulation.check
            artifact = emulation.artifact if target.runs_emulated else artifact
        of = ImageOf(
            recipe_name=self.loaded.name,
            folder=self.folder,
            recipe=self.recipe,
            target_name=name,
            target=target,
            precision=precision,
            platform=image_platform(target, self.platform),
            engine_options=engine,
            artifact=artifact,
            check=check,
            checked_by=emulation.engine if emulation else "",
        )
        below = Graph(self.steps, {}).needs([artifact, check])
        options = {step: self.steps[step].options for step in below}
        return plan_image(of, self.images, self._add, options)

    def _allowed_drop(self, target: str, precision: str) -> float:
        gate = self.recipe.gate
        for name in (f"{target}-{precision}", target):
            if name in gate.targets:
                return gate.targets[name]
        return gate.precisions.get(precision, gate.drop)

    def _ancestry(self, step: str) -> set[str]:
        found = {self.steps[step].kind}
        for name in self.steps[step].inputs.values():
            found |= self._ancestry(name)
        return found

    # The steps, from the source model down.

    def _add(self, name: str, kind: str, *, also: str = "", **fields: Any) -> str:
        """The id of the step that is this, made now if there is none yet."""
        module = step_module(kind)
        content = {"kind": kind, **{k: v for k, v in fields.items() if k != "limits"}}
        digest = key(msgspec.to_builtins(content))
        if digest in self._known:
            return self._share(self._known[digest], fields.get("limits", Limits()))
        step_id = f"{self.loaded.name}/{name}"
        if step_id in self.steps:
            step_id = f"{self.loaded.name}/{also or name + '-' + digest[:6]}"
        self.steps[step_id] = Step(
            id=step_id,
            kind=kind,
            recipe=self.loaded.name,
            folder=self.folder,
            module=STEPS[kind],
            version=module.VERSION,
            toolchain=fields.pop("toolchain", module.TOOLCHAIN),
            **fields,
        )
        self._known[digest] = step_id
        return step_id

    def _share(self, step_id: str, limits: Limits) -> str:
        """A step that several targets use may take what the most generous of them allows."""
        step = self.steps[step_id]
        memory = (step.limits.memory_mb, limits.memory_mb)
        widest = Limits(
            timeout_s=max(step.limits.timeout_s, limits.timeout_s),
            memory_mb=None if None in memory else max(m for m in memory if m is not None),
        )
        self.steps[step_id] = msgspec.structs.replace(step, limits=widest)
        return step_id

    def _path(self, written: str) -> str:
        return os.path.normpath(os.path.join(self.folder, written))

    def _paths(self, written: Mapping[str, str]) -> dict[str, str]:
        return {name: self._path(path) for name, path in written.items()}

    def _code(self, code: str) -> dict[str, Any]:
        """What a step that runs the user's code has besides."""
        return {
            "code": code,
            "environment": tuple(sorted(self.recipe.environment)),
            "seed": self.recipe.seed,
        }

    def _import(self) -> str:
        model = self.recipe.model
        fields: dict[str, Any] = {
            "options": {"signature": model.signature, "batch": model.batch, "inputs": model.inputs}
        }
        if model.function:
            fields["inputs"] = {"source": self._model()}
        else:
            fields["files"] = {"source": self._path(model.path or "")}
        return self._add("import", "import", **fields)

    def _model(self) -> str:
        model = self.recipe.model
        file, _, function = (model.function or "").rpartition(":")
        files = {"code": self._path(file)} | self._paths(
            {f"file{i}": path for i, path in enumerate(model.files)}
        )
        options = {"function": function, "arguments": model.arguments, "seed": self.recipe.seed}
        return self._add(
            "model", "model", options=options, files=files, **self._code(files["code"])
        )

    def _samples(self, kind: str, spec: Calibration | Evaluation | None) -> str:
        """The calibration or evaluation set; without a specification, random samples."""
        options: dict[str, Any]
        files: dict[str, str] = {}
        if spec is None:
            options = {
                "inputs": {"": Source(format="random")},
                "seed": self.recipe.seed,
            }
        else:
            sources, files = plan_sources(spec.data, "data")
            options = {
                "inputs": sources,
                "samples": spec.samples,
                "choose": spec.choose,
                "seed": spec.seed,
            }
            if isinstance(spec, Evaluation):
                files |= self._hooks()
                if spec.labels is not None:
                    labels, more = plan_sources(spec.labels, "labels")
                    options["labels"], files = labels[""], files | more
        options["batched"] = self.recipe.model.batch != "none"
        paths = self._paths(files)
        code = next((path for name, path in paths.items() if _is_code(name)), None)
        fields = self._code(code) if code else {}
        return self._add(
            kind,
            kind,
            options=msgspec.to_builtins(options),
            files=paths,
            inputs={"model": self._import()},
            **fields,
        )

    def _hooks(self) -> dict[str, str]:
        """The service's hooks and what they read, for steps that run them."""
        service = self.recipe.service
        if service.hooks is None:
            return {}
        files = {f"hooks.file.{i}": path for i, path in enumerate(service.files)}
        return {"hooks": service.hooks, **files}

    def _calibration(self, calibration: Calibration | str | None) -> str:
        spec = calibration if isinstance(calibration, Calibration) else None
        return self._samples("calibration", spec)

    def _evaluation(self) -> str:
        """The evaluation set, or what stands in for it: the calibration set, random samples."""
        if self.recipe.evaluation is not None:
            return self._samples("evaluation", self.recipe.evaluation)
        return self._calibration(self.recipe.calibration)

    def _chain(
        self,
        target: str,
        precision: str,
        uses: Iterable[StepUse],
        artifact: str,
        calibration: Calibration | str | None,
        limits: Limits,
        emulation: Emulated | None = None,
    ) -> str:
        """One conversion after the other; the id of the last one."""
        for use in uses:
            artifact = self._convert(
                target, precision, use, artifact, calibration, limits, emulation
            )
        return artifact

    def _convert(
        self,
        target: str,
        precision: str,
        use: StepUse,
        model: str,
        calibration: Calibration | str | None,
        limits: Limits,
        emulation: Emulated | None,
    ) -> str:
        module = step_module(use.step)
        options = {**use.options, **self._from_recipe(module, target, precision)}
        available = {
            "model": lambda: model,
            "calibration": lambda: self._calibration(calibration),
            "evaluation": self._evaluation,
            "reference": self._reference,
        }
        wanted = module.inputs(use.options) if hasattr(module, "inputs") else module.INPUTS
        if "calibration" in wanted and calibration is None:
            raise _no_calibration(self.loaded, target, precision)
        earlier = getattr(module, "FROM", {})  # inputs that steps of their own make
        inputs = {name: available[name]() for name in wanted if name not in earlier}
        for name in wanted:
            if name in earlier:
                known = _fields(step_module(earlier[name]))
                chosen = {k: v for k, v in use.options.items() if k in known}
                step = StepUse(step=earlier[name], options=chosen)
                inputs[name] = self._convert(
                    target, precision, step, model, calibration, limits, emulation
                )
        if emulation and _compiles(use.step):
            inputs["gate"] = emulation.gate
        fields = self._scoring() if getattr(module, "SCORES", False) else {}
        if _compiles(use.step) or getattr(module, "DEVICE", None):
            fields |= self._there(self.targets[target])
        files: dict[str, str] = fields.pop("files", {})
        return self._add(
            f"{use.step}-{precision}" if emulation or "precision" in _fields(module) else use.step,
            use.step,
            also=f"{use.step}-{target}-{precision}",
            options=msgspec.to_builtins(msgspec.convert(options, module.Options)),
            inputs=inputs,
            limits=limits,
            files=files,
            device=getattr(module, "DEVICE", None),
            **fields,
        )

    def _from_recipe(self, module: Any, target: str, precision: str) -> dict[str, Any]:
        """Options of a step that are not a target's to choose."""
        evaluation = self.recipe.evaluation
        of_scores = {
            "allowed_drop": self._allowed_drop(target, precision),
            "metric": self._metric()[0],
            "output": evaluation.output if evaluation else None,
        }
        known = {**(of_scores if getattr(module, "SCORES", False) else {})}
        known["batch"] = self.recipe.model.batch
        return {name: value for name, value in known.items() if name in _fields(module)}

    def _reference(self) -> str:
        inputs = {"model": self._import(), "evaluation": self._evaluation()}
        return self._add("reference", "reference", inputs=inputs)

    def _check(
        self,
        name: str,
        artifact: str,
        engine: EngineUse | Emulation,
        engine_options: Mapping[str, Any],
        limits: Limits,
        **fields: Any,
    ) -> str:
        evaluation = self.recipe.evaluation
        fields |= self._scoring()
        return self._add(
            name,
            "check",
            toolchain=engine.name,  # a toolchain has the name of its engine
            options={
                "engine": engine.name,
                "engine_options": dict(engine_options),
                "metric": self._metric()[0],
                "output": evaluation.output if evaluation else None,
            },
            inputs={
                "artifact": artifact,
                "evaluation": self._evaluation(),
                "reference": self._reference(),
            },
            limits=limits,
            threads=engine_options.get("threads") if engine.name == "tensorflow" else None,
            **fields,
        )

    def _metric(self) -> tuple[str | None, dict[str, str]]:
        """The metric as a step is told it, and the file of a metric of the user's own."""
        metric = self.recipe.evaluation.metric if self.recipe.evaluation else None
        if metric is None or ".py:" not in metric:
            return metric, {}
        file, _, function = metric.rpartition(":")
        return f"function:{function}", {"metric": file}

    def _scoring(self) -> dict[str, Any]:
        """The user's code that a step which scores runs: hooks, and a metric of their own."""
        hooks = self._hooks() if self.recipe.evaluation else {}
        files = self._paths({**hooks, **self._metric()[1]})
        return {"files": files, **(self._code(next(iter(files.values()))) if files else {})}

    def _latency(
        self,
        label: str,
        artifact: str,
        model: str,
        target: Target,
        engine_options: Mapping[str, Any],
    ) -> str:
        return self._add(
            f"latency-{label}",
            "latency",
            options={"engine": target.engine.name, "engine_options": dict(engine_options)},
            inputs={"artifact": artifact, "model": model, "samples": self._evaluation()},
            limits=target.limits,
            threads=engine_options.get("threads"),
            engines=(target.engine.name,),
            alone=True,
            machine=True,
            **self._there(target),
        )

    def _there(self, target: Target) -> dict[str, Any]:
        """What a step has besides that needs the device's own machine, where a farm has one."""
        at_device = target.platform in self.farm and not target.runs_emulated
        return {"platform": target.platform} if at_device else {}


def _is_code(name: str) -> bool:
    return name == "hooks" or is_code_key(name)


def _split(
    uses: tuple[StepUse, ...], target: Target
) -> tuple[tuple[StepUse, ...], tuple[StepUse, ...]]:
    """A pipeline up to what the emulation runs, and the device's compilers behind it."""
    if target.emulation is None:
        return uses, ()
    first = next((i for i, use in enumerate(uses) if _compiles(use.step)), len(uses))
    return uses[:first], uses[first:]


def _compiles(step: str) -> bool:
    """Whether it is a device's own compiler: it may take hours, or not be here."""
    return bool(getattr(step_module(step), "COMPILES", False))


def _fields(module: Any) -> tuple[str, ...]:
    names: tuple[str, ...] = module.Options.__struct_fields__
    return names


def _no_calibration(loaded: LoadedRecipe, target: str, precision: str) -> Tf2aifError:
    return FilesError(
        [
            Fault(
                f"variant {loaded.name}/{target}-{precision} needs a calibration set, "
                "and the recipe names none",
                at=loaded.at("targets"),
                hint="add 'calibration: {data: FILE, samples: 200}', "
                "or 'calibration: random' for an untrained model",
            )
        ]
    )
