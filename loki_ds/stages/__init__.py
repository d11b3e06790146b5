"""The stages of a run in their order: attribute, select, implant, retain.

Here is only the way of the data, from the recipe and the run folder back to the run folder. What a
stage computes is in the package of its name; a stage whose result is already there for the same
inputs is skipped.
"""

from loki_ds.stages.attribute import attribute
from loki_ds.stages.implant import implant
from loki_ds.stages.retain import check_retention, retain
from loki_ds.stages.run import Run
from loki_ds.stages.select import select

__all__ = ["Run", "attribute", "check_retention", "implant", "retain", "select"]
