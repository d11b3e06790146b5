"""ZeRO's formulas against hand-made sums (against measurement: eval/reports/plan.md)."""

import json
from dataclasses import replace

from conftest import ROOT

from loki_ds.distributed.zero.states import states_of
from loki_ds.planning.dry_run import MicroStep, Part
from loki_ds.planning.partitioning import Setting, kept_bytes, live_parameters, memory, traffic

# Three layers of 100 and 20 parameters, an embedding that is not trained back to, and a head; the
# second tensor of each layer trains.
PARTS = (Part((1000,), False), *(Part((100, 20), True),) * 3, Part((1000,), True))
STEP = MicroStep(
    parts=PARTS, tied=False, total=2360, trained=(20, 20, 20), kept=500, peak=700, flops=0, checkpointing=False
)


def test_memory_part_by_part() -> None:
    two = memory(STEP, Setting(ranks=2, stage=2, reduce_bucket=8), 2, "adamw_torch_fused", 0.0)
    assert (two.weights, two.gradients, two.optimizer) == (2 * 2360, 2 * 30 + 2 * 2 * 8, 12 * 30)
    assert two.peak == two.weights + two.gradients + two.optimizer + 700
    three = memory(
        STEP, Setting(ranks=2, stage=3, persistent_below=20, prefetch=5, reuse_within=0), 2, "adamw_torch_fused", 0.0
    )
    assert three.weights == 2 * (60 + 2300 / 2)
    assert three.gathered == 2 * (1000 + 5)
    assert memory(STEP, Setting(ranks=1, stage=3), 2, "sgd", 0.0).gathered == 0
    none = memory(STEP, Setting(ranks=1, stage=0), 4, "sgd", 0.0)
    assert (none.weights, none.gradients, none.optimizer, none.gathered) == (4 * 2360, 4 * 60, 0, 0)


def test_offloading_moves_to_the_host_what_it_takes_from_the_device() -> None:
    setting = Setting(ranks=2, stage=3)
    plain = memory(STEP, setting, 2, "adamw_torch_fused", 0.0)
    away = memory(
        STEP, Setting(ranks=2, stage=3, offload_optimizer=True, offload_parameters=True), 2, "adamw_torch_fused", 0.0
    )
    assert plain.peak - away.peak == away.host - plain.host == away.host


def test_the_guard_of_mask_mode_is_what_is_put_back() -> None:
    """Where it stands, and the shard as it began."""
    assert memory(STEP, Setting(ranks=2, stage=2), 4, "adamw", kept_bytes(True, False)).guard == (1 + 4) * 30


def test_what_zero_3_does_not_release_is_gathered_once() -> None:
    far, near = Setting(ranks=2, stage=3), Setting(ranks=2, stage=3, reuse_within=1)
    assert live_parameters(STEP, far) == 1000 + 3 * 120  # the embedding has no backward to wait for
    assert live_parameters(STEP, near) == 1000 + 120
    assert traffic(STEP, far, 2, 1).gathered == 2 * 2360
    assert traffic(STEP, near, 2, 1).gathered == 2 * (2360 + 2 * 120)
    assert traffic(replace(STEP, checkpointing=True), far, 2, 1).gathered == 2 * (2360 + 3 * 120)


def test_a_tied_head_is_there_already_if_the_embedding_stays() -> None:
    tied = replace(STEP, tied=True, total=1360)
    far, near = Setting(ranks=2, stage=3), Setting(ranks=2, stage=3, reuse_within=360)
    assert live_parameters(tied, far) == live_parameters(tied, near) == 1000 + 3 * 120
    assert traffic(tied, far, 2, 1).gathered == 2 * 1360
    assert traffic(tied, near, 2, 1).gathered == 2 * (1360 + 1000)


def test_traffic_by_stage_and_micro_steps() -> None:
    by_stage = {stage: traffic(STEP, Setting(ranks=4, stage=stage), 2, 3) for stage in range(4)}
    assert [(t.gathered, t.scattered, t.reduced) for t in by_stage.values()] == [
        (0, 0, 120),
        (120, 0, 120),
        (120, 0, 360),
        (3 * 2 * 2360, 360, 0),
    ]
    assert by_stage[2].wire(4) == (120 + 2 * 360) * 3 / 4
    assert traffic(STEP, Setting(ranks=1, stage=3), 2, 3).wire(1) == 0


def test_a_setting_is_read_as_deepspeed_and_transformers_read_it() -> None:
    read = {
        name: Setting.of(json.loads((ROOT / f"launch/{name}.json").read_text()), 8, 100)
        for name in ("zero2", "zero3", "zero3_offload")
    }
    assert read["zero2"].stage == 2
    assert read["zero3"] == Setting(8, 3, reduce_bucket=20_000_000, prefetch=9_000, persistent_below=1_000)
    assert (read["zero3_offload"].offload_optimizer, read["zero3_offload"].offload_parameters) == (True, True)
    assert Setting.of(None, 1, 100).stage == 0


def test_optimizers_by_transformers_names() -> None:
    assert [states_of(name) for name in ("adamw_torch_fused", "sgd", "adamw_8bit", "adafactor", "unheard_of")] == [
        2,
        0,
        0.5,
        0.01,
        2,
    ]
