"""Disk or hub to samples: LeRobot datasets, their statistics, and a loader that can be resumed."""

from vla.data.dataset import LeRobotDataset
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
    "DatasetInfo",
    "Episode",
    "Feature",
    "LeRobotDataset",
    "LeRobotWriter",
    "Member",
    "Mixture",
    "PolicyDataset",
    "ResumableLoader",
    "compute_statistics",
    "interface_of",
    "split_episodes",
    "to_canonical",
]
