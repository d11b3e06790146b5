"""What an optimizer keeps for each trained parameter, and DeepSpeed in its checkpoints."""

FULL = 4  # bytes of a number in full precision
# Numbers kept for each trained one.
STATES = {
    "adamw": 2,
    "adam": 2,
    "adafactor": 0.01,
    "sgd": 0,  # torch's without momentum, as transformers makes it
    "lion": 1,
    "adagrad": 1,
    "rmsprop": 1,
}


def states_of(optimizer: str) -> float:
    """Full-precision numbers an optimizer (Adam if unknown) keeps for each trained parameter."""
    eight_bit = 0.25 if "8bit" in optimizer else 1
    return eight_bit * next((count for name, count in STATES.items() if name in optimizer), 2)


def beside_the_model(frozen: int, trained: int, bytes_per_number: int, stage: int | None, optimizer: str) -> float:
    """Bytes of a checkpoint beside the model itself, at least.

    Without DeepSpeed, the optimizer's states in the model's own dtype. DeepSpeed keeps them in full
    precision with a master copy (from stage 1 on), and the module, at stage 3 its frozen part.

    Args:
        frozen, trained: parameters.
        bytes_per_number: bytes of a number of the model's dtype.
        stage: of ZeRO, None without DeepSpeed.
        optimizer: transformers' name.
    """
    states = states_of(optimizer)
    if stage is None:
        return bytes_per_number * states * trained
    module = frozen if stage == 3 else frozen + trained
    return bytes_per_number * module + FULL * (states + (stage > 0)) * trained
