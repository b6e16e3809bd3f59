"""Sample <-> model space: every transform with its inverse, and the pipeline that walks them."""

from vla.transforms.actions import DeltaActions, PadDimensions
from vla.transforms.base import Pipeline, Transform
from vla.transforms.images import AugmentImages, ResizeImages, resize_with_pad
from vla.transforms.normalize import FeatureStats, Normalize, Statistics
from vla.transforms.prompt import TokenizePrompt
from vla.transforms.tokenizer import load_tokenizer, train_tokenizer

__all__ = [
    "AugmentImages",
    "DeltaActions",
    "FeatureStats",
    "Normalize",
    "PadDimensions",
    "Pipeline",
    "ResizeImages",
    "Statistics",
    "TokenizePrompt",
    "Transform",
    "load_tokenizer",
    "resize_with_pad",
    "train_tokenizer",
]
