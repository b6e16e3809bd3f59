"""From a recipe to a trained policy: `train(load_recipe("recipes/x.yaml", ["data.path=..."]))`.

`train` is resolved on demand, so that a wrong key of a recipe is found without waiting for torch.
"""

from typing import TYPE_CHECKING, Any

from vla.train.recipe import Recipe
from vla.train.recipe_file import load_recipe

if TYPE_CHECKING:
    from vla.train.loop import TrainResult, train

__all__ = ["Recipe", "TrainResult", "load_recipe", "train"]


def __getattr__(name: str) -> Any:
    if name in ("TrainResult", "train"):
        from vla.train import loop

        return getattr(loop, name)
    raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
