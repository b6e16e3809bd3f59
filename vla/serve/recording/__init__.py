"""What a server was asked and answered, as a dataset, and asked again."""

from vla.serve.recording.recorder import Record, Recorder
from vla.serve.recording.replaying import Replayed, replay, seeded

__all__ = ["Record", "Recorder", "Replayed", "replay", "seeded"]
