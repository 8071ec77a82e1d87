import pytest

from handful.errors import SettingsError
from handful.methods.catalog import METHODS, build_method, default_settings, method_settings, seed_setting
from handful.methods.description import describe_method
from handful.methods.few_shot_prompts.method import FewShotPrompts
from handful.methods.interactive.method import Interactive
from handful.methods.unet.method import UNet
from handful.methods.wrappers.largest_piece import LargestPiece
from handful.methods.wrappers.roi_crop import RoiCrop
from whole import build_whole


def test_no_settings_give_the_defaults():
    assert build_method("few-shot-prompts", {}) == LargestPiece(RoiCrop(FewShotPrompts(), "auto"), "auto")
    assert build_method("interactive", {}) == LargestPiece(Interactive(), "auto")


def test_dotted_keys_reach_inside_and_text_becomes_numbers():
    method = build_whole(
        "few-shot-prompts", {"train.iterations": "200", "slicer.plane": "axial", "location": "true", "views": "3"}
    )
    assert method.train.iterations == 200
    assert method.slicer.plane == "axial"
    assert method.location is True
    assert method.views == 3


def test_a_dotted_key_keeps_the_other_defaults():
    changed = build_whole("few-shot-prompts", {"train.iterations": 7})
    assert changed.train.learning_rate == FewShotPrompts().train.learning_rate


def test_a_choice_of_numbers_and_none_may_be_typed_as_text():
    assert build_whole("unet", {"dims": "3", "side": "none"}) == UNet(dims=3)
    assert build_whole("unet", {"side": "64"}) == UNet(side=64)
    with pytest.raises(SettingsError, match="dims = '4'"):
        build_method("unet", {"dims": "4"})


def test_a_window_may_be_typed_as_two_numbers():
    assert build_whole("nearest-slice", {"slicer.window": "-100,300"}).slicer.window == (-100, 300)


def test_nested_and_dotted_settings_mix():
    method = build_whole("few-shot-prompts", {"train": {"iterations": 5}, "train.seed": 3})
    assert (method.train.iterations, method.train.seed) == (5, 3)


def test_settings_are_json():
    assert method_settings(FewShotPrompts(views=2))["views"] == 2
    assert method_settings(FewShotPrompts())["train"]["iterations"] == FewShotPrompts().train.iterations


def test_an_unknown_method_is_refused_with_the_nearest_name():
    with pytest.raises(SettingsError, match="did you mean 'nearest-slice'"):
        build_method("nearest-slices", {})


def test_an_unknown_nested_setting_is_refused_with_the_nearest_name():
    with pytest.raises(SettingsError, match=r"train has no setting 'iteration'.*did you mean 'iterations'"):
        build_method("few-shot-prompts", {"train.iteration": 5})


def test_a_value_of_the_wrong_kind_is_named():
    with pytest.raises(SettingsError, match=r"train\.iterations = 'many'"):
        build_method("few-shot-prompts", {"train.iterations": "many"})


def test_a_value_inside_a_setting_without_parts_is_refused():
    with pytest.raises(SettingsError, match="views"):
        build_method("few-shot-prompts", {"views.many": 5})


@pytest.mark.parametrize(("name", "value"), [("batch", 0), ("parts", 0), ("views", -1), ("token_noise", -0.1)])
def test_a_number_out_of_range_is_refused_at_either_door(name: str, value: float):
    with pytest.raises(SettingsError, match=name):
        build_method("few-shot-prompts", {name: value})
    with pytest.raises(SettingsError, match=name):
        FewShotPrompts(**{name: value})


@pytest.mark.parametrize(
    ("method", "settings"),
    [
        ("auto-sam", {"head": "linear", "shared_pass": "false"}),
        ("auto-sam", {"head": "cnn", "token_init_std": 0.1}),
        ("auto-sam", {"as_published": True, "shared_pass": False}),
        ("auto-sam", {"head": "vit", "relu_out": True}),
        ("few-shot-prompts", {"loss": "dice-focal"}),
        ("few-shot-prompts", {"background": False, "rare_class_weight": 0}),
        ("fate", {"window": 0, "start": "best"}),
        ("fate", {"fuse": True, "forward_uses_reverse": False}),
        ("interactive", {"prompts": "centre", "prompt_mix.tight_box": 0.5}),
        ("interactive", {"prompts": "centre", "annotator.quick": 0}),
        ("interactive", {"rounds": 0, "mask_prompts": 1}),
        ("interactive", {"pruning.share": 0.25}),
        ("volume-adapter", {"adapter": "attention", "rank": 8}),
        ("unet", {"depth": 32}),
    ],
    ids=str,
)
def test_a_setting_without_effect_is_refused(method: str, settings: dict[str, object]):
    name = list(settings)[-1].split(".")[0 if method == "interactive" and "prompts" in settings else -1]
    with pytest.raises(SettingsError, match=f"^{name} = .* has no effect, because .*; leave it out$"):
        build_method(method, settings)


@pytest.mark.parametrize(
    ("method", "settings"),
    [
        ("auto-sam", {"head": "linear", "shared_pass": True}),
        ("few-shot-prompts", {"background": False, "loss": "dice-focal"}),
        ("fate", {"window": 2, "start": "best"}),
        ("interactive", {"pruning.rule": "random", "pruning.share": 0.25}),
        ("unet", {"dims": 3, "depth": 32}),
    ],
    ids=str,
)
def test_a_setting_with_an_effect_or_at_its_default_is_taken(method: str, settings: dict[str, object]):
    assert build_method(method, settings)


def test_a_misspelt_setting_of_all_methods_is_recognised():
    with pytest.raises(SettingsError, match=r"did you mean 'roi_margin'.*settings are .*planes"):
        build_method("fate", {"roi_margn": 1.4})


@pytest.mark.parametrize("name", METHODS)
def test_default_settings_are_what_a_method_is_built_from(name: str):
    assert build_method(name, default_settings(name)) == build_method(name, {})


@pytest.mark.parametrize("name", METHODS)
def test_a_method_trains_if_the_list_of_methods_says_so(name: str):
    assert build_method(name, {}).trains == describe_method(name).trains


def test_the_seed_has_a_setting_where_something_is_random():
    seeds = {name: seed_setting(name) for name in ("few-shot-prompts", "ensemble", "nearest-slice")}
    assert seeds == {"few-shot-prompts": "train.seed", "ensemble": "seed", "nearest-slice": None}
