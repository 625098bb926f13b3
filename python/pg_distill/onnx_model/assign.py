"""Which features go to which input of a graph, where some of the features are vectors."""

from __future__ import annotations

from collections.abc import Sequence

from pg_distill.errors import InvalidData
from pg_distill.frame import Feature
from pg_distill.onnx_model.signature import Element

__all__ = ["assign_vectors"]


def assign_vectors(
    features: Sequence[Feature], names: Sequence[str], widths: Sequence[int], elements: Sequence[Element]
) -> list[list[int]]:
    """Return, for each input, the positions of its features in order; a vector's numbers stay together.

    An input of a feature's name and width gets it. Of the rest strings go to inputs of strings, a vector to the first input
    that is just as long, and what is left to the inputs that are left, in order.

    Raises
    ------
    InvalidData
        They do not fit.
    """
    shares: list[list[int]] = [[] for _ in names]
    room = list(widths)
    left = list(range(len(features)))

    def give(slot: int, place: int) -> None:
        shares[slot].append(place)
        room[slot] -= features[place].width
        left.remove(place)

    def fits(slot: int, place: int) -> bool:
        return (elements[slot] == "string") == features[place].is_string

    by_name = {f.name: i for i, f in enumerate(features)}
    for slot, name in enumerate(names):
        place = by_name.get(name)
        if place is not None and len(names) > 1 and features[place].width == room[slot] and fits(slot, place):
            give(slot, place)
    for place in list(left):
        if features[place].is_vector:
            alone = [s for s in range(len(names)) if room[s] == features[place].width and not shares[s]]
            if alone and len(names) > 1 and fits(alone[0], place):
                give(alone[0], place)
    for slot in range(len(names)):
        for place in list(left):
            if room[slot] and features[place].width <= room[slot] and fits(slot, place):
                give(slot, place)
    if left or any(room):
        wanted = ", ".join(f"{name} takes {width}" for name, width in zip(names, widths, strict=True))
        raise InvalidData(
            "the vectors do not fit the model's inputs",
            detail=f"Of its inputs {wanted}; " + ", ".join(f"{f.name} has {f.width}" for f in features) + ".",
            hint="Name the features in the order of the inputs.",
        )
    return shares
