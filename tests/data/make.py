"""Tiny LeRobot datasets for tests, whose pixels say which frame they are.

`make_dataset(folder, version="v3.0" or "v2.1", ...)` writes one; `read_code(image)` reads
(episode, frame, camera) back from a decoded image, so a test sees from the pixels alone whether the right
frame came out. `low_dim(...)` gives the state and action that were written. The v3.0 form goes through
`LeRobotWriter`; the v2.1 form is written here with nothing but pyarrow, json and PyAV.
"""

import json
from collections.abc import Callable, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from vla.data.writing.encoder import same_scheduling
from vla.data.writing.writer import LeRobotWriter

CAMERAS = ("observation.images.top", "observation.images.wrist")
BLOCK = 8
BITS = (("episode", 8), ("frame", 10), ("camera", 3))


def draw_code(episode: int, frame: int, camera: int, height: int = 32, width: int = 64) -> np.ndarray:
    """uint8 [h, w, 3]: the three numbers as black and white blocks of 8x8 pixels, on mid grey."""
    bits = [
        n >> i & 1 for n, (_, size) in zip((episode, frame, camera), BITS, strict=True) for i in range(size)
    ]
    blocks = np.full((height // BLOCK) * (width // BLOCK), 128, dtype=np.uint8)
    assert len(bits) <= len(blocks), f"{height}x{width} is too small to say which frame it is: use 32x64"
    blocks[: len(bits)] = np.array(bits) * 255
    image = np.full((height, width), 128, dtype=np.uint8)
    grid = blocks.reshape(height // BLOCK, width // BLOCK).repeat(BLOCK, 0).repeat(BLOCK, 1)
    image[: grid.shape[0], : grid.shape[1]] = grid
    return image[..., None].repeat(3, -1)


def read_code(image: Any) -> tuple[int, int, int]:
    """(episode, frame, camera) from an image [3, h, w] or [h, w, 3] that came out of a video."""
    pixels = np.asarray(image).astype(float)
    grey = pixels.mean(0 if pixels.shape[0] == 3 else -1)
    rows, columns = grey.shape[0] // BLOCK, grey.shape[1] // BLOCK
    blocks = grey[: rows * BLOCK, : columns * BLOCK].reshape(rows, BLOCK, columns, BLOCK).mean((1, 3)).ravel()
    numbers, at = [], 0
    for _, size in BITS:
        numbers.append(sum(int(blocks[at + i] > 128) << i for i in range(size)))
        at += size
    return numbers[0], numbers[1], numbers[2]


def low_dim(
    episode: int, length: int, state_dim: int, action_dim: int, seed: int = 0
) -> tuple[np.ndarray, ...]:
    """state [n, d] and action [n, m], float32: a smooth random walk in which the action leads the state."""
    rng = np.random.default_rng([seed, episode])
    width = max(state_dim, action_dim)
    walk = rng.normal(scale=0.1, size=(length + 1, width)).cumsum(0) + rng.normal(size=width)
    return walk[:-1, :state_dim].astype(np.float32), walk[1:, :action_dim].astype(np.float32)


def task_of(episode: int) -> str:
    return ("put the cup on the plate", "open the drawer")[episode % 2]


def response_of(episode: int, frame: int) -> str:
    return f"episode {episode}, {'first' if frame == 0 else 'later'} frame"


def make_dataset(
    folder: Path | str,
    version: str = "v3.0",
    episodes: int = 4,
    length: int | Sequence[int] = 20,
    cameras: Sequence[str] = CAMERAS,
    height: int = 32,
    width: int = 64,
    state_dim: int = 3,
    action_dim: int = 3,
    fps: int = 10,
    response: bool = False,
    seed: int = 0,
    codec: str = "h264",
    **writer: Any,
) -> Path:
    """Write a dataset of `episodes` episodes of `length` frames each (or one length per episode).

    With `response`, a string column "response" is there too. Returns the folder.
    """
    folder = Path(folder)
    lengths = [length] * episodes if isinstance(length, int) else list(length)
    assert len(lengths) == episodes
    assert version in ("v3.0", "v2.1")
    rows = [low_dim(e, n, state_dim, action_dim, seed) for e, n in enumerate(lengths)]
    if version == "v2.1":
        _write_v21(folder, rows, cameras, height, width, fps, response, codec)
        return folder
    with LeRobotWriter(
        folder,
        fps,
        cameras=dict.fromkeys(cameras, (height, width)),
        state_names=[f"s{i}" for i in range(state_dim)],
        action_names=[f"a{i}" for i in range(action_dim)],
        robot_type="test_arm",
        extra_features={"response": "string"} if response else {},
        codec=codec,
        **writer,
    ) as out:
        for e, (state, action) in enumerate(rows):
            for i in range(len(state)):
                images = {key: draw_code(e, i, c, height, width) for c, key in enumerate(cameras)}
                extra = {"response": response_of(e, i)} if response else {}
                out.add_frame({"observation.state": state[i], "action": action[i], **images, **extra})
            out.save_episode(task_of(e))
    return folder


def write_mp4(
    path: Path, frames: Sequence[np.ndarray], fps: int, codec: str = "h264", **options: str
) -> None:
    """Encode uint8 [h, w, 3] frames with PyAV and nothing of the project but a guard of the scheduling."""
    path.parent.mkdir(parents=True, exist_ok=True)
    encoder = {"h264": "libx264", "hevc": "libx265", "av1": "libsvtav1"}[codec]
    with same_scheduling(), av.open(str(path), "w") as container:
        stream = container.add_stream(encoder, rate=fps, options={"g": "2", "crf": "20", **options})
        stream.height, stream.width, _ = frames[0].shape
        stream.pix_fmt = "yuv420p"
        stream.codec_context.time_base = Fraction(1, fps)
        for i, pixels in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            frame.pts = i
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def write_json(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, indent=2))


def write_jsonl(path: Path, rows: Sequence[Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def _write_v21(folder, rows, cameras, height, width, fps, response, codec):
    tasks = list(dict.fromkeys(task_of(e) for e in range(len(rows))))
    first = 0
    for e, (state, action) in enumerate(rows):
        n = len(state)
        columns = {
            "observation.state": pa.array(state.tolist(), pa.list_(pa.float32(), state.shape[1])),
            "action": pa.array(action.tolist(), pa.list_(pa.float32(), action.shape[1])),
            "timestamp": pa.array((np.arange(n) / fps).astype(np.float32)),
            "frame_index": pa.array(range(n), pa.int64()),
            "episode_index": pa.array([e] * n, pa.int64()),
            "index": pa.array(range(first, first + n), pa.int64()),
            "task_index": pa.array([tasks.index(task_of(e))] * n, pa.int64()),
        }
        if response:
            columns["response"] = pa.array([response_of(e, i) for i in range(n)])
        path = folder / f"data/chunk-000/episode_{e:06d}.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.table(columns), path)
        for c, key in enumerate(cameras):
            frames = [draw_code(e, i, c, height, width) for i in range(n)]
            write_mp4(folder / f"videos/chunk-000/{key}/episode_{e:06d}.mp4", frames, fps, codec)
        first += n
    scalar = {"shape": [1], "names": None}
    vector = {"dtype": "float32"}
    features = {key: {"dtype": "video", "shape": [height, width, 3], "names": ["height", "width", "channels"]}
                for key in cameras}  # fmt: skip
    features |= {
        "observation.state": {**vector, "shape": [rows[0][0].shape[1]], "names": None},
        "action": {**vector, "shape": [rows[0][1].shape[1]], "names": None},
        "timestamp": {"dtype": "float32", **scalar},
        **{
            key: {"dtype": "int64", **scalar}
            for key in ("frame_index", "episode_index", "index", "task_index")
        },
    }
    if response:
        features["response"] = {"dtype": "string", **scalar}
    write_json(
        folder / "meta/info.json",
        {
            "codebase_version": "v2.1",
            "robot_type": "test_arm",
            "total_episodes": len(rows),
            "total_frames": first,
            "total_tasks": len(tasks),
            "total_videos": len(rows) * len(cameras),
            "total_chunks": 1,
            "chunks_size": 1000,
            "fps": fps,
            "splits": {"train": f"0:{len(rows)}"},
            "data_path": "data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet",
            "video_path": "videos/chunk-{episode_chunk:03d}/{video_key}/episode_{episode_index:06d}.mp4",
            "features": features,
        },
    )
    write_jsonl(folder / "meta/tasks.jsonl", [{"task_index": i, "task": t} for i, t in enumerate(tasks)])
    write_jsonl(
        folder / "meta/episodes.jsonl",
        [{"episode_index": e, "tasks": [task_of(e)], "length": len(s)} for e, (s, _) in enumerate(rows)],
    )


def edit_info(root: Path, edit: Callable[[dict[str, Any]], Any]) -> None:
    """Change info.json in place."""
    info = json.loads((root / "meta/info.json").read_text())
    edit(info)
    write_json(root / "meta/info.json", info)


def edit_tables(root: Path, edit: Callable[[pa.Table], pa.Table], below: str = "data") -> None:
    """Rewrite every parquet file of a dataset."""
    for path in sorted((root / below).rglob("*.parquet")):
        pq.write_table(edit(pq.read_table(path)), path)


def set_column(root: Path, key: str, edit: Callable[[list], Any], type: pa.DataType | None = None) -> None:
    """Rewrite one column in every parquet file, from the list of its values to another or an array."""

    def change(table: pa.Table) -> pa.Table:
        values = edit(table[key].to_pylist())
        array = values if isinstance(values, pa.Array) else pa.array(values, type or table[key].type)
        return table.set_column(table.column_names.index(key), key, array)

    edit_tables(root, change)


def split_columns(root: Path, columns: dict[str, dict[str, int]]) -> None:
    """Store vectors in several columns, `{"action": {"action.arm": 2, "action.gripper": 1}}`."""

    def change(table: pa.Table) -> pa.Table:
        for key, parts in columns.items():
            values, at = np.array(table[key].to_pylist(), np.float32), 0
            for name, width in parts.items():
                own = values[:, at] if width == 1 else values[:, at : at + width].tolist()
                table = table.append_column(
                    name, pa.array(own, pa.float32() if width == 1 else pa.list_(pa.float32()))
                )
                at += width
            table = table.drop_columns([key])
        return table

    def describe(info: dict[str, Any]) -> None:
        for key, parts in columns.items():
            names, at = info["features"].pop(key)["names"], 0
            names = names or [f"{key[0] if key == 'action' else 's'}{i}" for i in range(sum(parts.values()))]
            for name, width in parts.items():
                own = None if width == 1 else names[at : at + width]
                info["features"][name] = {"dtype": "float32", "shape": [width], "names": own}
                at += width

    edit_tables(root, change)
    edit_info(root, describe)
