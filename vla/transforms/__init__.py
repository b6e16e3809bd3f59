"""Sample <-> model space: every transform with its inverse, and the pipeline that applies them."""

from vla.interface import RobotInterface, VectorInterface
from vla.transforms.actions import DeltaActions, PadDimensions
from vla.transforms.base import Pipeline, Transform
from vla.transforms.batch import collate
from vla.transforms.cameras import RenameCameras, RotateImages
from vla.transforms.grippers import FlipSigns, LinearMap, SliderCrank
from vla.transforms.images import AugmentImages, CameraFormat, CameraTensors, ResizeImages, resize_with_pad
from vla.transforms.normalize import Normalize
from vla.transforms.prompt import TokenizePrompt
from vla.transforms.prompt_state import TokenizeStatePrompt
from vla.transforms.statistics import FeatureStats, Statistics
from vla.transforms.task import DefaultTask
from vla.transforms.tokenizer import load_tokenizer, train_tokenizer

__all__ = [
    "AugmentImages",
    "CameraFormat",
    "CameraTensors",
    "DefaultTask",
    "DeltaActions",
    "FeatureStats",
    "FlipSigns",
    "LinearMap",
    "Normalize",
    "PadDimensions",
    "Pipeline",
    "RenameCameras",
    "ResizeImages",
    "RobotInterface",
    "RotateImages",
    "SliderCrank",
    "Statistics",
    "TokenizePrompt",
    "TokenizeStatePrompt",
    "Transform",
    "VectorInterface",
    "collate",
    "load_tokenizer",
    "resize_with_pad",
    "train_tokenizer",
]
