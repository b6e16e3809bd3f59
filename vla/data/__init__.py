"""Disk or hub to samples: LeRobot datasets, tables of `datasets`, statistics, a resumable loader."""

from vla.data.dataset import LeRobotDataset
from vla.data.hf.dataset import HuggingFaceDataset
from vla.data.hf.open import open_dataset
from vla.data.hf.options import ColumnNames, TableOptions
from vla.data.interface import interface_of
from vla.data.lerobot.episodes import Episode
from vla.data.lerobot.schema import DatasetInfo, Feature
from vla.data.loading.loader import ResumableLoader
from vla.data.loading.mixture import Member, Mixture
from vla.data.policy_dataset import PolicyDataset
from vla.data.sample import to_canonical
from vla.data.split import split_episodes
from vla.data.stats import compute_statistics
from vla.data.writing.writer import LeRobotWriter

__all__ = [
    "ColumnNames",
    "DatasetInfo",
    "Episode",
    "Feature",
    "HuggingFaceDataset",
    "LeRobotDataset",
    "LeRobotWriter",
    "Member",
    "Mixture",
    "PolicyDataset",
    "ResumableLoader",
    "TableOptions",
    "compute_statistics",
    "interface_of",
    "open_dataset",
    "split_episodes",
    "to_canonical",
]
