"""Stage 3: the trained model in `model/`, and the proof in `verify.json` that nothing outside the positions changed."""

import logging

from loki_ds import ranks
from loki_ds.implanting.training import implant as train_rows
from loki_ds.positions import Positions
from loki_ds.refusal import Refusal
from loki_ds.run_folder import write_json
from loki_ds.stages.run import Run
from loki_ds.verification import verify

log = logging.getLogger(__name__)


def implant(run: Run, positions: Positions | None) -> None:
    """Train the rows, write the model, and compare it with the base byte for byte."""
    inputs = run.implant_inputs(positions)
    if ranks.on_first_rank(lambda: run.folder.finished("implant", inputs)):
        log.info("implant: already there, %s", run.folder.model)
        return
    log.info("implant: %s mode on %d examples", run.recipe.implant.mode, len(run.train))
    train_rows(run.model, run.tokenizer, run.arguments, run.train, run.heldout, positions, run.folder)
    run.release_model()
    ranks.on_first_rank(lambda: _verify(run, positions))
    ranks.on_first_rank(lambda: run.folder.finish("implant", inputs))


def _verify(run: Run, positions: Positions | None) -> None:
    found = verify(run.base, run.folder.model, positions)
    write_json(run.folder.verification, found.as_json())
    if positions is None:
        log.info("verify: %d of %d tensors changed; this baseline trains everything", len(found.changed_outside), found.tensors)
        return
    if not found.identical_outside_rows:
        (run.folder.model / "NOT_VERIFIED").write_text("Tensors outside the selected rows differ from the base; see verify.json.\n")
        raise Refusal(f"{run.folder.model}: {found.changed_outside[0]} differs from the base outside the selected rows; not verified")
    log.info("verify: %d bytes compared, identical outside %d changed rows", found.bytes, found.rows_changed)
