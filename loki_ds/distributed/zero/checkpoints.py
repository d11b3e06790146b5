"""DeepSpeed's checkpoints: whether ranks hold a part each, and the state for another world size."""

from argparse import Namespace
from collections.abc import Iterable
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

from deepspeed.checkpoint import ds_to_universal

from loki_ds.disk.files import written_whole
from loki_ds.distributed.ranks import on_first_rank
from loki_ds.refusal import Refusal


def is_partitioned(checkpoint: Path) -> bool:
    """Whether ranks wrote a part each, so that only as many can load the checkpoint as it is."""
    return any(checkpoint.glob("global_step*/*zero_pp_rank_*_optim_states.pt"))


def loading_repartitioned(config: dict[str, Any]) -> dict[str, Any]:
    """DeepSpeed's configuration with which it loads what `repartition` wrote."""
    return {**config, "checkpoint": {**config.get("checkpoint", {}), "load_universal": True}}


def repartition(checkpoint: Path, trained: Iterable[str]) -> None:
    """Write a partitioned checkpoint's state once more, for any number of ranks: DeepSpeed's
    universal checkpoint. One rank's work.

    trained: names of the parameters whose weights and moments must be in it.

    Raises:
        Refusal: the optimizer's state is not Adam's, the only one that DeepSpeed converts.
    """
    if not is_partitioned(checkpoint):
        return
    step = checkpoint / (checkpoint / "latest").read_text().strip()
    with written_whole(checkpoint / "universal") as aside:
        settings = {
            "num_extract_workers": 1,
            "num_merge_workers": 1,
            "keep_temp_folder": False,
            "strict": True,
            "inject_missing_state": True,
        }
        try:
            with redirect_stdout(StringIO()), redirect_stderr(StringIO()):
                ds_to_universal.main(Namespace(input_folder=str(step), output_folder=str(aside), **settings))
            whole = all(
                (aside / "zero" / name / f"{part}.pt").exists()
                for name in trained
                for part in ("fp32", "exp_avg", "exp_avg_sq")
            )
        except KeyError:
            whole = False
        if not whole:
            raise Refusal(
                f"{checkpoint}: another number of ranks wrote it, and only the state of AdamW can be divided anew; "
                "resume with as many as wrote it, or delete it"
            )
    (checkpoint / "latest_universal").write_text("universal")


def name_newest_everywhere(checkpoint: Path) -> None:
    """Let every node know a checkpoint's newest part: DeepSpeed notes it (`latest`) on rank 0's
    disk only. All ranks call it.
    """
    file = checkpoint / "latest"
    newest = on_first_rank(lambda: file.read_text() if file.exists() else None)
    if newest is not None and checkpoint.is_dir() and not file.exists():
        file.write_text(newest)
