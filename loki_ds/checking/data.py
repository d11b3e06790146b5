"""The examples in words: the template they are rendered with, what is learnt and what is cut."""

from collections.abc import Iterable

from transformers import PreTrainedConfig

from loki_ds.checking.base import positions_of
from loki_ds.checking.findings import Findings
from loki_ds.data.dataset import Counts
from loki_ds.data.render_settings import Rendering


def data_found(rendering: Rendering, counts: Iterable[Counts], config: PreTrainedConfig) -> Findings:
    """counts: of each source, of all its rows or the first."""
    positions = positions_of(config)
    length = rendering.loss.cut.length
    lines = [one.said() for one in counts]
    for one in counts:
        longest = min(one.longest, length or one.longest)
        if positions is not None and longest > positions:
            lines.append(f"{one.path}: rows of {longest:,} tokens, the model was made for {positions:,}")
    return [*(("template", line) for line in rendering.said), *(("data", line) for line in lines)]
