"""What a training cannot be: settings that would run and end in other weights than trained.

Each is one sentence, before the model is loaded.
"""

from pathlib import Path
from typing import Any

import torch
from accelerate.utils import parse_flag_from_env
from trl import SFTConfig

from loki_ds.distributed.zero.configuration import check_zero
from loki_ds.model.files import open_weights
from loki_ds.model.stored_rows import StoredRows
from loki_ds.recipe.implant import ImplantSection
from loki_ds.refusal import Refusal


def check_deepspeed(config: dict[str, Any], file: str, implant: ImplantSection) -> None:
    """Refuse what would gather other weights than those that train, or train rows nowhere whole."""
    if _part(config, "tensor_parallel", file).get("autotp_size", 1) not in (0, 1):
        raise Refusal(
            f"{file}: tensor_parallel splits the rows that are trained and compared; use ZeRO-3 to shard the model"
        )
    if implant.fade and "scheduler" in config:
        raise Refusal(
            f"{file}: with a scheduler of DeepSpeed's the rates are not those of training.lr_scheduler_type, by which "
            "implant.fade is reckoned; leave it out, or give implant.pull"
        )
    if "zero_optimization" not in config:
        raise Refusal(f"{file}: zero_optimization is missing, allowed is an object with a stage from 0 to 3")
    zero = _part(config, "zero_optimization", file)
    check_zero(zero, file)
    stage = zero.get("stage", 0)
    if type(stage) is not int or not 0 <= stage <= 3:
        raise Refusal(f"{file}: zero_optimization.stage is {stage!r}, allowed is 0, 1, 2 or 3")
    for key in ("zero_quantized_weights", "zero_quantized_nontrainable_weights"):
        if zero.get(key):
            raise Refusal(f"{file}: {key} gathers rounded weights, so no byte could be verified; leave it out")
    if zero.get("zero_hpz_partition_size", 1) != 1 and implant.kind.leaves == "deltas":
        raise Refusal(
            f"{file}: zero_hpz_partition_size knows no parameters that join the model after it is built, as in "
            f"implant.mode {implant.mode}; use mode mask, or leave it out"
        )
    gather = "stage3_gather_16bit_weights_on_model_save"
    if stage == 3 and implant.kind.leaves == "weights" and not zero.get(gather):
        raise Refusal(
            f"{file}: zero_optimization.{gather} must be true in implant.mode {implant.mode}, or no rank has them"
        )


def check_full_precision(config: dict[str, Any] | None, dtype: str, implant: ImplantSection) -> None:
    """Refuse 16-bit numbers that would train without a copy in full precision that a pull reaches:
    small steps would round away.

    config: of DeepSpeed's file, None without one. PEFT's adapters are in full precision anyway.
    """
    stage = config["zero_optimization"].get("stage", 0) if config else 0
    full_by_itself = config is None and implant.kind.leaves == "adapter"
    if dtype == "float32" or stage or full_by_itself or not implant.kind.trains:
        return
    why = "deepspeed's zero_optimization.stage is 0" if config else "the recipe names no deepspeed file"
    raise Refusal(
        f"model.dtype is {dtype} and {why}, so small steps would round away; say deepspeed=launch/zero2.json, which "
        "serves one process, too, or model.dtype=float32"
    )


def check_deepspeed_values(config: dict[str, Any], file: str, arguments: SFTConfig, ranks: int | None) -> None:
    """Hold DeepSpeed's file against the recipe, value by value: each must be `auto` or the same.

    arguments: TRL's settings of the recipe. ranks: None if not known yet, as in a check by hand.
    """
    if parse_flag_from_env("ACCELERATE_USE_CPU"):  # accelerate launch --cpu, which starts one process
        raise Refusal(
            f"{file}: ACCELERATE_USE_CPU is set, so accelerate would leave DeepSpeed out; start with deepspeed, "
            "torchrun or accelerate launch --multi_gpu"
        )
    batch, accumulation = arguments.per_device_train_batch_size, arguments.gradient_accumulation_steps
    recipes: dict[str, tuple[str, Any]] = {
        "train_micro_batch_size_per_gpu": ("per_device_train_batch_size", batch),
        "gradient_accumulation_steps": ("gradient_accumulation_steps", accumulation),
        **({"train_batch_size": ("per_device_train_batch_size", batch * accumulation * ranks)} if ranks else {}),
        "gradient_clipping": ("max_grad_norm", arguments.max_grad_norm),
        "optimizer.params.lr": ("learning_rate", arguments.learning_rate),
        "optimizer.params.weight_decay": ("weight_decay", arguments.weight_decay),
        "optimizer.params.eps": ("adam_epsilon", arguments.adam_epsilon),
        "optimizer.params.betas": ("adam_beta1 with adam_beta2", [arguments.adam_beta1, arguments.adam_beta2]),
        "scheduler.params.warmup_max_lr": ("learning_rate", arguments.learning_rate),
        "bf16.enabled": ("model.dtype", arguments.bf16),
        "fp16.enabled": ("model.dtype", arguments.fp16),
    }
    for key, (name, wanted) in recipes.items():
        value = _value(config, key, file)
        if value != "auto" and (type(value) is str or value != wanted):
            source = name if name == "model.dtype" else f"training.{name}"
            raise Refusal(f"{file}: {key} is {value!r}, the recipe's {source} makes it {wanted!r}; say auto there")
    for key in ("scheduler.params.warmup_num_steps", "scheduler.params.total_num_steps"):
        if (value := _value(config, key, file)) != "auto":
            raise Refusal(f"{file}: {key} is {value!r}, allowed is auto: it follows from the recipe")
    needed = ["optimizer.params.lr", "optimizer.params.weight_decay"] if "optimizer" in config else []
    if str(_value(config, "scheduler.type", file)).startswith("Warmup"):
        needed += ["scheduler.params.warmup_max_lr", "scheduler.params.warmup_num_steps"]
    for key in needed:
        if _value(config, key, file, None) is None:
            raise Refusal(f"{file}: {key} is missing, so DeepSpeed would take a value of its own; say auto there")


def check_one_of_each(config: dict[str, Any], file: str, training: dict[str, Any]) -> None:
    """Refuse an optimizer or a schedule that is named in both; the file would win, in silence."""
    for section, key in (("optimizer", "optim"), ("scheduler", "lr_scheduler_type")):
        if section in config and key in training:
            raise Refusal(
                f"{file}: has a section {section}, and training.{key} is {training[key]!r}, which would do nothing; "
                "name one of them"
            )


def _value(config: dict[str, Any], key: str, file: str, missing: Any = "auto") -> Any:
    """The value under a dotted key; what stands there counts as `auto` where nothing does."""
    *parts, last = key.split(".")
    for part in parts:
        config = _part(config, part, file)
    return config.get(last, missing)


def _part(config: dict[str, Any], key: str, file: str) -> dict[str, Any]:
    """A section of DeepSpeed's file, empty where there is none."""
    part = config.get(key, {})
    if not isinstance(part, dict):
        raise Refusal(f"{file}: {key} is {part!r}, allowed is an object")
    return part


def check_dtype(base: Path, wanted: str, implant: ImplantSection) -> None:
    """Modes that write gathered weights must train in the checkpoint's dtype, or all is rounded."""
    if not implant.kind.rewrites_model:
        return  # the base's own bytes are written, and its rows changed
    trained = getattr(torch, wanted)
    with open_weights(base) as weights:
        rows = StoredRows(weights).tensors
        for name in sorted(weights.names):
            stored = weights.dtype_of(name)
            exact = stored == trained if name in rows else torch.promote_types(stored, trained) == trained
            if not exact:
                raise Refusal(
                    f"model.dtype is {wanted}, {base} stores {name} in {str(stored).removeprefix('torch.')}; in "
                    f"implant.mode {implant.mode} they must be the same"
                )
