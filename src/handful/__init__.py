"""Label a handful of slices; get the whole cohort segmented.

The face of the package: every public name, fetched from its room when it is first asked for, so that importing the
package costs nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from handful.backbones.base import Backbone, ImageEmbeddings, MemoryBackbone, PromptEmbeddings
    from handful.backbones.cached import CachedBackbone, cached
    from handful.backbones.catalog import BACKBONES, load_backbone
    from handful.backbones.zoom import decode_zoomed
    from handful.checkpoint import describe_support, load, save
    from handful.cohort.choice import choose_cases, choose_support
    from handful.cohort.demo import draw_episodes, write_phantom_cohort
    from handful.cohort.embed import EmbedResult, embed_cohort
    from handful.cohort.fit import FitConfig, FitResult, dice_on_support, fit_to_folder
    from handful.cohort.predict import (
        CohortResult,
        PredictConfig,
        open_segmenter,
        predict_cohort,
        predict_file,
        support_among,
    )
    from handful.cohort.review import ReviewConfig, ReviewResult, review_folder
    from handful.curation.quality import CaseQuality, LabelQuality, QualityConfig, predict_quality
    from handful.curation.suggest import SuggestConfig, Suggestion, SuggestResult, suggest
    from handful.data.cases import Case, Cohort, Finding, SupportSet, check_case
    from handful.data.files import SUFFIXES, read_cohort, read_label_map, read_volume, write_label_map, write_volume
    from handful.data.nnunet import NnunetDataset, export_nnunet, import_nnunet
    from handful.data.slicing import Slicer
    from handful.data.volume import IGNORE, Geometry, LabelMap, Labels, Volume
    from handful.errors import (
        BusyError,
        CheckpointError,
        DamagedFile,
        GeometryMismatch,
        HandfulError,
        InputError,
        LabelError,
        SettingsError,
        UnsupportedInput,
    )
    from handful.evaluation.evaluate import Report, evaluate, evaluate_cases, evaluate_folders
    from handful.evaluation.results import read_results, write_results
    from handful.evaluation.study import Study
    from handful.experiments.plan import Arm, DataSet, Plan, compare_plan, read_plan
    from handful.experiments.run import ExperimentConfig, run_experiment
    from handful.experiments.store import ExperimentStatus, experiment_status, read_study, write_experiment_report
    from handful.jobs.allocator import tune_allocator
    from handful.jobs.devices import DEVICES, choose_device
    from handful.jobs.progress import Run
    from handful.methods.auto_sam.method import AutoSam
    from handful.methods.base import Method, Segmenter
    from handful.methods.catalog import METHODS, build_method, method_settings
    from handful.methods.fate.method import Fate
    from handful.methods.few_shot_prompts.method import FewShotPrompts
    from handful.methods.interactive.method import Interactive
    from handful.methods.lora import Lora
    from handful.methods.nearest_slice import NearestSlice
    from handful.methods.promptable import PromptableSegmenter, Prompted, SimulatedReader, TransferredPrompts, oracle
    from handful.methods.unet.method import UNet
    from handful.methods.wrappers.ensemble import Ensemble
    from handful.methods.wrappers.planes import Planes
    from handful.methods.wrappers.roi_crop import Closer
    from handful.methods.wrappers.seeds import Seeds
    from handful.methods.zero_shot import ZeroShot
    from handful.pretraining.pretrain import PretrainConfig, pretrain, processors
    from handful.prompts.prompts import Prompts
    from handful.reports.explanation import write_preview
    from handful.reports.overlay import write_overlay
    from handful.reports.score_tables import print_table, write_csv, write_json, write_nnunet_summary
    from handful.reports.study_page import write_html
    from handful.reports.suggestions import write_suggestions
    from handful.session.session import Change, Session, SessionConfig
    from handful.session.simulated_annotator import Reading, read_through
    from handful.tuning.loop import TrainConfig

_ROOMS = {
    "handful.evaluation.study": ("Study",),
    "handful.reports.study_page": ("write_html",),
    "handful.evaluation.results": (
        "read_results",
        "write_results",
    ),
    "handful.experiments.store": (
        "ExperimentStatus",
        "experiment_status",
        "read_study",
        "write_experiment_report",
    ),
    "handful.experiments.run": ("ExperimentConfig", "run_experiment"),
    "handful.experiments.plan": (
        "Arm",
        "DataSet",
        "Plan",
        "compare_plan",
        "read_plan",
    ),
    "handful.session.simulated_annotator": (
        "Reading",
        "read_through",
    ),
    "handful.session.session": (
        "Change",
        "Session",
        "SessionConfig",
    ),
    "handful.methods.auto_sam.method": ("AutoSam",),
    "handful.methods.interactive.method": ("Interactive",),
    "handful.methods.unet.method": ("UNet",),
    "handful.data.nnunet": (
        "NnunetDataset",
        "export_nnunet",
        "import_nnunet",
    ),
    "handful.methods.wrappers.planes": ("Planes",),
    "handful.methods.wrappers.seeds": ("Seeds",),
    "handful.methods.wrappers.roi_crop": ("Closer",),
    "handful.methods.promptable": (
        "Prompted",
        "PromptableSegmenter",
        "SimulatedReader",
        "TransferredPrompts",
        "oracle",
    ),
    "handful.methods.zero_shot": ("ZeroShot",),
    "handful.methods.lora": ("Lora",),
    "handful.backbones.base": ("Backbone", "ImageEmbeddings", "MemoryBackbone", "PromptEmbeddings"),
    "handful.backbones.cached": ("CachedBackbone", "cached"),
    "handful.backbones.catalog": ("BACKBONES", "load_backbone"),
    "handful.backbones.zoom": ("decode_zoomed",),
    "handful.checkpoint": ("describe_support", "load", "save"),
    "handful.cohort.choice": ("choose_cases", "choose_support"),
    "handful.jobs.devices": ("DEVICES", "choose_device"),
    "handful.cohort.demo": ("draw_episodes", "write_phantom_cohort"),
    "handful.cohort.embed": ("EmbedResult", "embed_cohort"),
    "handful.cohort.fit": ("FitConfig", "FitResult", "dice_on_support", "fit_to_folder"),
    "handful.jobs.allocator": ("tune_allocator",),
    "handful.cohort.predict": (
        "CohortResult",
        "PredictConfig",
        "open_segmenter",
        "predict_cohort",
        "predict_file",
        "support_among",
    ),
    "handful.curation.suggest": ("SuggestConfig", "SuggestResult", "Suggestion", "suggest"),
    "handful.reports.suggestions": ("write_suggestions",),
    "handful.curation.quality": ("CaseQuality", "LabelQuality", "QualityConfig", "predict_quality"),
    "handful.cohort.review": ("ReviewConfig", "ReviewResult", "review_folder"),
    "handful.data.cases": ("Case", "Cohort", "Finding", "SupportSet", "check_case"),
    "handful.data.files": (
        "SUFFIXES",
        "read_cohort",
        "read_label_map",
        "read_volume",
        "write_label_map",
        "write_volume",
    ),
    "handful.data.slicing": ("Slicer",),
    "handful.data.volume": ("IGNORE", "Geometry", "LabelMap", "Labels", "Volume"),
    "handful.errors": (
        "BusyError",
        "CheckpointError",
        "DamagedFile",
        "GeometryMismatch",
        "HandfulError",
        "InputError",
        "LabelError",
        "SettingsError",
        "UnsupportedInput",
    ),
    "handful.evaluation.evaluate": (
        "Report",
        "evaluate",
        "evaluate_cases",
        "evaluate_folders",
    ),
    "handful.reports.overlay": ("write_overlay",),
    "handful.reports.explanation": ("write_preview",),
    "handful.reports.score_tables": ("print_table", "write_csv", "write_json", "write_nnunet_summary"),
    "handful.methods.base": ("Method", "Segmenter"),
    "handful.methods.catalog": ("METHODS", "build_method", "method_settings"),
    "handful.methods.wrappers.ensemble": ("Ensemble",),
    "handful.methods.fate.method": ("Fate",),
    "handful.methods.few_shot_prompts.method": ("FewShotPrompts",),
    "handful.methods.nearest_slice": ("NearestSlice",),
    "handful.pretraining.pretrain": ("PretrainConfig", "pretrain", "processors"),
    "handful.prompts.prompts": ("Prompts",),
    "handful.tuning.loop": ("TrainConfig",),
    "handful.jobs.progress": ("Run",),
}

__all__ = [
    "BACKBONES",
    "DEVICES",
    "IGNORE",
    "METHODS",
    "SUFFIXES",
    "Arm",
    "AutoSam",
    "Backbone",
    "BusyError",
    "CachedBackbone",
    "Case",
    "CaseQuality",
    "Change",
    "CheckpointError",
    "Closer",
    "Cohort",
    "CohortResult",
    "DamagedFile",
    "DataSet",
    "EmbedResult",
    "Ensemble",
    "ExperimentConfig",
    "ExperimentStatus",
    "Fate",
    "FewShotPrompts",
    "Finding",
    "FitConfig",
    "FitResult",
    "Geometry",
    "GeometryMismatch",
    "HandfulError",
    "ImageEmbeddings",
    "InputError",
    "Interactive",
    "LabelError",
    "LabelMap",
    "LabelQuality",
    "Labels",
    "Lora",
    "MemoryBackbone",
    "Method",
    "NearestSlice",
    "NnunetDataset",
    "Plan",
    "Planes",
    "PredictConfig",
    "PretrainConfig",
    "PromptEmbeddings",
    "PromptableSegmenter",
    "Prompted",
    "Prompts",
    "QualityConfig",
    "Reading",
    "Report",
    "ReviewConfig",
    "ReviewResult",
    "Run",
    "Seeds",
    "Segmenter",
    "Session",
    "SessionConfig",
    "SettingsError",
    "SimulatedReader",
    "Slicer",
    "Study",
    "SuggestConfig",
    "SuggestResult",
    "Suggestion",
    "SupportSet",
    "TrainConfig",
    "TransferredPrompts",
    "UNet",
    "UnsupportedInput",
    "Volume",
    "ZeroShot",
    "build_method",
    "cached",
    "check_case",
    "choose_cases",
    "choose_device",
    "choose_support",
    "compare_plan",
    "decode_zoomed",
    "describe_support",
    "dice_on_support",
    "draw_episodes",
    "embed_cohort",
    "evaluate",
    "evaluate_cases",
    "evaluate_folders",
    "experiment_status",
    "export_nnunet",
    "fit_to_folder",
    "import_nnunet",
    "load",
    "load_backbone",
    "method_settings",
    "open_segmenter",
    "oracle",
    "predict_cohort",
    "predict_file",
    "predict_quality",
    "pretrain",
    "print_table",
    "processors",
    "read_cohort",
    "read_label_map",
    "read_plan",
    "read_results",
    "read_study",
    "read_through",
    "read_volume",
    "review_folder",
    "run_experiment",
    "save",
    "suggest",
    "support_among",
    "tune_allocator",
    "write_csv",
    "write_experiment_report",
    "write_html",
    "write_json",
    "write_label_map",
    "write_nnunet_summary",
    "write_overlay",
    "write_phantom_cohort",
    "write_preview",
    "write_results",
    "write_suggestions",
    "write_volume",
]

if not TYPE_CHECKING:  # a type checker would take every misspelt name for a public one

    def __getattr__(name):
        for room, names in _ROOMS.items():
            if name in names:
                return getattr(importlib.import_module(room), name)
        if name == "__version__":
            return importlib.import_module("importlib.metadata").version("handful")
        raise AttributeError(f"module 'handful' has no attribute {name!r}")

    def __dir__():
        return __all__
