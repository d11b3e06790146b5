"""The one table of implanting's modes: whatever is asked of a mode anywhere is answered here.

How each makes a model ready to train stands in `implanting.training`.
"""

from typing import Literal, NamedTuple


class Mode(NamedTuple):
    """What an `implant.mode` comes to.

    confined: to the selected rows. leaves: what training leaves on the ranks to be gathered:
    `deltas` of the rows, the whole model's `weights`, or PEFT's `adapter`; None where nothing
    trains. reads: the optional keys of `implant` that mean something to it.
    """

    confined: bool
    leaves: Literal["deltas", "weights", "adapter"] | None
    reads: frozenset[str] = frozenset()

    @property
    def trains(self) -> bool:
        return self.leaves is not None

    @property
    def adds_parameters(self) -> bool:
        """Whether what trains joins the base's parameters, which stay as they are."""
        return self.leaves in ("deltas", "adapter")

    @property
    def rewrites_model(self) -> bool:
        """Whether a whole model is written into a copy of the base, tensor by tensor."""
        return self.leaves in ("weights", "adapter")

    @property
    def trains_everything(self) -> bool:
        return self.leaves == "weights" and not self.confined

    @property
    def masks(self) -> bool:
        """Whether whole `W_down`s train and all but the selected rows are put back."""
        return self.leaves == "weights" and self.confined


TRAINED = frozenset({"pull", "fade", "rehearse"})
MODES = {
    "mask": Mode(confined=True, leaves="weights", reads=TRAINED),
    "rows": Mode(confined=True, leaves="deltas", reads=TRAINED),
    "lora": Mode(confined=True, leaves="deltas", reads=TRAINED | {"lora"}),
    "full": Mode(confined=False, leaves="weights", reads=TRAINED),
    "peft": Mode(confined=False, leaves="adapter", reads=TRAINED | {"peft"}),
    "suppress": Mode(confined=True, leaves=None),
}
