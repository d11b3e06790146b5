"""The keys of `training:` are TRL's own; what changes no result is only seen; a secret is never
recorded.
"""

from dataclasses import fields

import pytest
from trl import SFTConfig

from loki_ds.recipe.training_keys import (
    ABOVE_ZERO,
    DEFAULTS,
    ELSEWHERE,
    RENDERING,
    RESERVED,
    SCHEDULE,
    changes_a_result,
    check_training_keys,
    training_keys,
    without_secrets,
)


def test_the_names_read_from_the_source_are_those_of_the_class() -> None:
    assert training_keys() == {field.name for field in fields(SFTConfig) if field.init} - set(RESERVED)


def test_every_key_of_the_tables_is_one_of_trls() -> None:
    """So that one which TRL renames fails here, by its name."""
    names = {field.name for field in fields(SFTConfig) if field.init}
    tables = {*RESERVED, *ELSEWHERE, *DEFAULTS, *RENDERING, *ABOVE_ZERO, *SCHEDULE}
    assert tables - names == set()


@pytest.mark.parametrize(
    ("key", "value", "says"),
    [
        ("trust_remote_code", True, "it follows from model.trust_remote_code"),
        ("dataset_kwargs", {"skip_prepare_dataset": True}, "it follows from the section 'data'"),
        ("bf16", False, "it follows from model.dtype"),
        ("fsdp", "full_shard", "training.fsdp is 'full_shard', allowed is nothing; DeepSpeed's file says how"),
    ],
)
def test_keys_that_would_do_nothing_or_harm_are_refused(key: str, value: object, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        check_training_keys({key: value})


@pytest.mark.parametrize(
    "key", ["run", "retention.margin", "retention", "attribution.memory_gib", "training.report_to"]
)
def test_what_is_only_seen_changes_nothing(key: str) -> None:
    assert not changes_a_result(key)


@pytest.mark.parametrize(
    "key", ["model.path", "selection", "attribution.steps", "training", "training.seed", "deepspeed"]
)
def test_everything_else_may(key: str) -> None:
    assert changes_a_result(key)


def test_every_key_that_is_only_seen_is_one_of_trls() -> None:
    seen = sorted(key for key in training_keys() if not changes_a_result(f"training.{key}"))
    assert {"report_to", "logging_steps", "hub_token", "run_name", "dataset_num_proc"} <= set(seen)
    assert not {"learning_rate", "max_length", "seed", "lr_scheduler_type", "loss_type"} & set(seen)


def test_secrets_are_left_out_however_deep() -> None:
    settings = {"hub_token": "hf_x", "pad_token": "<pad>", "comet": [{"api_key": "k", "project": "p"}], "max_length": 8}
    assert without_secrets(settings) == {"pad_token": "<pad>", "comet": [{"project": "p"}], "max_length": 8}
