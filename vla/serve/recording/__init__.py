"""What a server was asked and answered, as a dataset, and asked again."""

from vla.serve.recording.episodes import Record
from vla.serve.recording.recorder import Recorder
from vla.serve.recording.replaying import Replayed, replay, seeded

__all__ = ["Record", "Recorder", "Replayed", "replay", "seeded"]
