"""A recipe as a frozen value: the model, its data, its gate, and the targets wanted.

Each field is stated once, with its meaning beside it; `schemas/recipe.json` and the reference
table in the docs are made from here.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from msgspec import UNSET, Meta, Struct, UnsetType

NAME = r"^[a-z0-9]([a-z0-9._-]*[a-z0-9])?$"
FUNCTION = r"^[^:]+\.py:[A-Za-z_][A-Za-z0-9_]*$"

Name = Annotated[str, Meta(pattern=NAME, max_length=63)]
Function = Annotated[str, Meta(pattern=FUNCTION)]
Positive = Annotated[int, Meta(ge=1)]
Drop = Annotated[float, Meta(ge=0)]
Builder = Literal["tf2aif", "docker"]
Metric = Annotated[
    str,
    Meta(pattern=rf"^(top-1|top-5|mean-iou|mse|cosine|auc|{FUNCTION[1:-1]})$"),
]


class Model(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The source model: a path, or a function that returns it."""

    path: Annotated[
        str | None, Meta(description="a SavedModel folder, a .keras file or an .h5 file")
    ] = None
    function: Annotated[
        Function | None,
        Meta(description="file.py:function that returns a Keras model; it is a step of its own"),
    ] = None
    arguments: Annotated[dict[str, Any], Meta(description="keyword arguments of the function")] = {}
    files: Annotated[
        list[str], Meta(description="other files and folders that the function reads")
    ] = []
    signature: Annotated[
        str | None,
        Meta(description="the signature to use; by default serving_default, or the only one"),
    ] = None
    batch: Annotated[
        Positive | Literal["free", "none"],
        Meta(description="the size of the batch axis; 'free' keeps it open, 'none': there is none"),
    ] = 1
    inputs: Annotated[
        dict[str, list[Positive]],
        Meta(description="input name -> shape without the batch axis, where it is open"),
    ] = {}


class Images(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """How a folder of images becomes an array of shape (n, height, width, channels)."""

    size: Annotated[
        tuple[Positive, Positive], Meta(description="height and width in pixels, after resizing")
    ]
    color: Annotated[Literal["rgb", "bgr", "gray"], Meta(description="order of the channels")] = (
        "rgb"
    )
    scale: Annotated[float, Meta(description="each value 0 to 255 is multiplied by this")] = 1.0
    mean: Annotated[
        list[float], Meta(description="subtracted after scaling, one value or one a channel")
    ] = []
    std: Annotated[
        list[float], Meta(description="divided by after the mean, one value or one a channel")
    ] = []
    dtype: Annotated[Literal["float32", "uint8"], Meta(description="of the array")] = "float32"


class Data(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A set of samples: a file, a folder of images, a TFRecord, a function, or one for each input.

    A plain string stands for `path` or, where it reads `file.py:function`, for `function`.
    """

    path: Annotated[
        str | None,
        Meta(description=".npy, .npz#array, .tfrecord#feature, or a folder of images"),
    ] = None
    function: Annotated[
        Function | None, Meta(description="file.py:function that returns an array, or one by input")
    ] = None
    arguments: Annotated[dict[str, Any], Meta(description="keyword arguments of the function")] = {}
    files: Annotated[
        list[str], Meta(description="other files and folders that the function reads")
    ] = []
    images: Annotated[
        Images | None, Meta(description="how a folder of images is read; required with a folder")
    ] = None
    dtype: Annotated[
        str | None, Meta(description="of a TFRecord's raw bytes feature, as numpy names it")
    ] = None
    shape: Annotated[list[Positive], Meta(description="of one sample in a TFRecord")] = []
    inputs: Annotated[
        dict[str, str], Meta(description="input name -> path, for models with several inputs")
    ] = {}


class Calibration(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The calibration set: the representative dataset of quantisation."""

    data: Annotated[str | Data, Meta(description="the samples")]
    samples: Annotated[Positive | None, Meta(description="how many; by default all")] = None
    choose: Annotated[
        Literal["first", "random"], Meta(description="the first ones, or drawn with `seed`")
    ] = "first"
    seed: Annotated[int, Meta(ge=0, description="of the draw")] = 0


class Evaluation(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The evaluation set: labelled samples on which source and variants are compared."""

    data: Annotated[str | Data, Meta(description="the samples")]
    labels: Annotated[
        str | Data | None,
        Meta(description="one label a sample; without them the source model is the truth"),
    ] = None
    metric: Annotated[
        Metric,
        Meta(description="top-1, top-5, mean-iou, mse, cosine, auc, or file.py:function"),
    ] = "top-1"
    output: Annotated[
        str | None, Meta(description="which output is scored; by default the only one")
    ] = None
    samples: Annotated[Positive | None, Meta(description="how many; by default all")] = None
    choose: Annotated[
        Literal["first", "random"], Meta(description="the first ones, or drawn with `seed`")
    ] = "first"
    seed: Annotated[int, Meta(ge=0, description="of the draw")] = 0


class Gate(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """How much of the metric a variant may lose against the source model, in the metric's units."""

    drop: Annotated[float, Meta(ge=0, description="the largest drop for every variant")] = 0.02
    precisions: Annotated[
        dict[str, Drop], Meta(description="precision -> largest drop, in place of `drop`")
    ] = {}
    targets: Annotated[
        dict[str, Drop],
        Meta(description="target or target-precision -> largest drop, in place of both"),
    ] = {}


class Service(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """How the variant is served."""

    hooks: Annotated[
        str | None, Meta(description="a Python file with decode, preprocess, postprocess, encode")
    ] = None
    requirements: Annotated[
        list[str], Meta(description="what the hooks need, as pip requirement strings")
    ] = []
    files: Annotated[list[str], Meta(description="files that the hooks read")] = []


class TargetOverride(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What a recipe changes in a target."""

    precisions: Annotated[
        Annotated[list[str], Meta(min_length=1)] | UnsetType,
        Meta(description="which precisions; by default all of the target's"),
    ] = UNSET
    options: Annotated[
        dict[str, dict[str, Any]], Meta(description="step -> options that replace the target's")
    ] = {}
    engine: Annotated[
        dict[str, Any], Meta(description="engine options that replace the target's")
    ] = {}
    calibration: Annotated[
        Calibration | Literal["random"] | None,
        Meta(description="another calibration set for this target"),
    ] = None


class Recipe(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One model and all that is wanted of it. Paths are relative to the recipe's own folder."""

    model: Annotated[Model, Meta(description="the source model")]
    targets: Annotated[
        Annotated[list[Name], Meta(min_length=1)]
        | Annotated[dict[Name, TargetOverride | None], Meta(min_length=1)],
        Meta(description="the targets wanted, by name, with what changes in them"),
    ]
    name: Annotated[
        Name | None, Meta(description="by default the file's name without its ending")
    ] = None
    description: Annotated[str, Meta(description="for people")] = ""
    needs: Annotated[
        list[str],
        Meta(
            description="files and folders without which the recipe is left out where it is found "
            "in a folder of recipes; where it is named itself, their absence is an error"
        ),
    ] = []
    calibration: Annotated[
        Calibration | Literal["random"] | None,
        Meta(description="the calibration set; 'random' only for untrained models"),
    ] = None
    evaluation: Annotated[
        Evaluation | None,
        Meta(description="the evaluation set; without it only outputs are compared"),
    ] = None
    gate: Annotated[Gate, Meta(description="what a variant may lose")] = Gate()
    service: Annotated[Service, Meta(description="how a variant is served")] = Service()
    builder: Annotated[
        Builder | None,
        Meta(description="what composes the images, in place of the targets' choice"),
    ] = None
    environment: Annotated[
        list[str], Meta(description="environment variables that the recipe's code may see")
    ] = []
    seed: Annotated[
        int, Meta(ge=0, description="of everything that draws numbers, the recipe's code included")
    ] = 0
