"""The catalogue of methods by name, and their settings in the form 'train.iterations=200'."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import TypeAdapter, ValidationError

from handful.backbones.base import Backbone
from handful.errors import SettingsError, did_you_mean
from handful.methods.auto.method import Auto
from handful.methods.auto_sam.method import AutoSam
from handful.methods.auto_sam.unet import AutoSamUNet
from handful.methods.base import Method
from handful.methods.fate.method import Fate
from handful.methods.few_shot_prompts.method import FewShotPrompts
from handful.methods.interactive.method import Interactive
from handful.methods.know_sam.method import KnowSam
from handful.methods.lora import Lora
from handful.methods.nearest_slice import NearestSlice
from handful.methods.online import OnlineLearner
from handful.methods.self_training.method import SelfTraining
from handful.methods.settings import listed, read_settings
from handful.methods.unet.method import UNet
from handful.methods.volume_adapter.method import VolumeAdapter
from handful.methods.wrappers.base import MethodWrapper
from handful.methods.wrappers.ensemble import Ensemble
from handful.methods.wrappers.largest_piece import LargestPiece
from handful.methods.wrappers.planes import Planes
from handful.methods.wrappers.roi_crop import RoiCrop
from handful.methods.wrappers.seeds import Seeds
from handful.methods.zero_shot import ZeroShot

METHODS: dict[str, type[Method]] = {
    "auto": Auto,
    "auto-sam": AutoSam,
    "auto-sam-unet": AutoSamUNet,
    "ensemble": Ensemble,
    "fate": Fate,
    "few-shot-prompts": FewShotPrompts,
    "interactive": Interactive,
    "know-sam": KnowSam,
    "lora": Lora,
    "nearest-slice": NearestSlice,
    "self-training": SelfTraining,
    "unet": UNet,
    "volume-adapter": VolumeAdapter,
    "zero-shot": ZeroShot,
}
WRAPPERS: dict[str, type[Any]] = {
    "roi_margin": RoiCrop,
    "planes": Planes,
    "seeds": Seeds,
    "largest_piece": LargestPiece,
}
"""Wrappers by the setting that enables them, which all methods have. With several, the first is the innermost."""


def build_method(name: str, settings: Mapping[str, object]) -> Method:
    """The method of that name with these settings; settings that are left out keep their defaults.

    Settings are values or text, nested or with dotted keys ('train.iterations'). All methods have four settings that
    wrap the method: `roi_margin` crops scans to the labelled region, enlarged by that factor (a number, 'none', or
    'auto', the default, which decides on the support set); `planes` ('axial,coronal,sagittal') fits on several planes,
    which vote; `seeds` (3) fits with several random seeds, which vote; `largest_piece` removes the smaller pieces of
    labels that are one piece in all references ('auto', the default, or 'none'). Raises SettingsError with the setting,
    its value and what is allowed.
    """
    kind = require_method(name)
    of_method = {key: value for key, value in settings.items() if key not in WRAPPERS}
    method: Method = read_settings(kind, of_method, name, tuple(WRAPPERS))
    for wrapper in WRAPPERS.values():
        value = _wrapper_setting(wrapper, settings, wrapper.default_for(kind))
        if value is not None:
            method = wrapper(method, value)
    return method


def require_method(name: str) -> type[Method]:
    """The class of the method of that name. Raises SettingsError, with a similar name, for an unknown one."""
    if name not in METHODS:
        hint = did_you_mean(name, METHODS)
        raise SettingsError(f"there is no method {name!r}; {hint}methods are {', '.join(sorted(METHODS))}")
    return METHODS[name]


def online_learner() -> OnlineLearner:
    """A learner for sessions that has learned nothing yet: an auxiliary network, with default settings."""
    from handful.methods.auxiliary.learner import Auxiliary  # imports MONAI's networks, which takes seconds

    return Auxiliary()


def method_settings(method: Method) -> dict[str, Any]:
    """All settings of a method as JSON values; `build_method` accepts them."""
    if isinstance(method, MethodWrapper):
        return method_settings(method.method) | {method.key: method.value}
    settings: dict[str, Any] = TypeAdapter(type(method)).dump_python(method, mode="json")
    return settings | {
        key: "none" for key, wrapper in WRAPPERS.items() if wrapper.default_for(type(method)) is not None
    }


def settings_from_backbone(method: Method, backbone: Backbone) -> dict[str, Any]:
    """The settings of None that the backbone's defaults replace, and their values: {'train.learning_rate': 0.0003}."""
    left, taken = (_dotted(method_settings(one)) for one in (method, method.resolved(backbone)))
    return {key: value for key, value in taken.items() if value is not None and left[key] is None}


def default_settings(name: str) -> dict[str, Any]:
    """The default settings of a method, with dotted keys: {'train.iterations': 600}."""
    settings = _dotted(method_settings(build_method(name, {})))
    return {key: value for key, value in settings.items() if ".slicer." not in key}  # members of an ensemble share one


def seed_setting(name: str) -> str | None:
    """The name of the setting for a method's random seed; None if it has none."""
    settings = default_settings(name)
    return next((key for key in ("train.seed", "seed") if key in settings), None)


def _dotted(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in settings.items():
        flat |= _dotted(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return flat


def _wrapper_setting(wrapper: type[MethodWrapper], settings: Mapping[str, object], default: Any) -> Any:
    """The value of the wrapper's setting, or `default` if it is left out; None for a method without the wrapper."""
    value = listed(settings.get(wrapper.key, default))
    if value in (None, "", "none"):
        return None
    try:
        return TypeAdapter(wrapper.kind).validate_python(value)
    except ValidationError:
        raise SettingsError(f"{wrapper.key} = {settings[wrapper.key]!r}: set {wrapper.example}, or none") from None
