"""A closer look at the arms: slices, rare events, and what second labels differ from the first."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llmft.config.suite import Suite
from llmft.evaluation.noise import SecondLabels, measure_noise
from llmft.evaluation.rare import measure_rare
from llmft.evaluation.scored import Scored
from llmft.evaluation.slices import Slicing, measure_slices

Floats = NDArray[np.floating[Any]]


def look_closer(
    suite: Suite,
    scored: Scored,
    outputs: dict[str, list[Floats]],
    *,
    slicings: Sequence[Slicing],
    second: dict[str, SecondLabels],
) -> dict[str, Any]:
    """Return `slices`, `rare` and `noise`."""
    kinds = {"repeated": "repeated", "second_oracle": "second oracle"}
    return {
        "slices": measure_slices(
            slicings, scored.labels, outputs, metric=suite.config.metric, config=scored.config,
            groups=scored.groups,
        ),
        "rare": measure_rare(
            scored.labels, outputs, ids=[row["id"] for row in scored.rows], names=scored.names,
            config=scored.config, high=suite.config.high, top_k=suite.config.top_k,
        ),
        "noise": [
            measure_noise(
                again, scored.labels, outputs, kind=kinds[kind], path=suite.noise_paths[kind],
                names=scored.names, groups=scored.groups,
            )
            for kind, again in second.items()
            if len(again.positions_M)
        ],
    }  # fmt: skip
