"""The parts of a flow policy, by the names of their parameters."""

_PARTS = {
    "vision_tower": "vision",
    "multi_modal_projector": "projector",
    "language_model": "language_model",
    "expert": "expert",
}


def part_of(parameter: str) -> str:
    """Return the part of the model that a parameter belongs to, by its full name, wrapped or not.

    It is "vision", "projector", "language_model", "expert", or "heads" for what stands between the expert
    and the robot's numbers.
    """
    inside = parameter.split(".")
    return next((part for module, part in _PARTS.items() if module in inside), "heads")
