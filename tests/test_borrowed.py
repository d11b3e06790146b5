"""What the package borrows from inside libraries: names that are not part of what they promise.

Each has a line here that says who uses it, so that a new release which renames one fails by its
name, in a second, and not in the launcher after minutes.
"""

import ast
import atexit
import inspect
from collections.abc import Callable
from datetime import datetime
from types import ModuleType

import pytest
import torch
from accelerate import state
from accelerate.utils import memory
from conftest import ROOT
from deepspeed.runtime import bf16_optimizer
from deepspeed.runtime.zero import parameter_offload, partition_parameters, stage3
from deepspeed.utils import mixed_precision_linkage
from lm_eval import evaluator, utils
from lm_eval.api.task import Task
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import _factory, _index
from lm_eval.tasks._yaml_loader import load_yaml
from torch._subclasses import fake_tensor
from torch.utils import _python_dispatch, _pytree, cpp_extension, flop_counter
from transformers import PretrainedConfig, Trainer, core_model_loading
from transformers.integrations import deepspeed as hf_deepspeed
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.trainer_utils import rotate_checkpoints
from transformers.utils import chat_template_utils
from trl import SFTTrainer
from trl.chat_template_utils import get_training_chat_template, has_generation_markers
from trl.data_utils import common_prefix_length
from trl.trainer import utils as trl_utils


def says(part: ModuleType | Callable | type, *words: str) -> bool:
    """Whether a library's part has all these words in its source."""
    source = inspect.getsource(part)
    return all(word in source for word in words)


ATEN = torch.ops.aten
BORROWED: dict[str, Callable[[], bool]] = {
    # distributed/zero
    "deepspeed: a partitioned parameter's ds_ names": lambda: says(
        partition_parameters, "ds_id", "ds_shape", "ds_status", "ds_tensor", "ds_numel"
    ),
    "deepspeed: _z3_optimizer and its groups": lambda: (
        says(stage3, "._z3_optimizer", "fp32_partitioned_groups_flat", "grad_position", "def get_param_id")
        and says(stage3, "def _swappable_optimizer_subgroup")
    ),
    "deepspeed: _hp_mapping and its fragments": lambda: (
        says(mixed_precision_linkage, "_hp_mapping") and says(bf16_optimizer, "_hp_mapping")
    ),
    "deepspeed: the stack of modules in flight": lambda: parameter_offload.FWD_MODULE_STACK == [],
    "transformers: the live DeepSpeed configuration": lambda: (
        hasattr(hf_deepspeed, "_hf_deepspeed_config_weak_ref") and hasattr(hf_deepspeed, "unset_hf_deepspeed_config")
    ),
    # distributed
    "python: atexit._run_exitfuncs": lambda: callable(atexit._run_exitfuncs),
    "torch: where extensions are built, and their lock": lambda: (
        callable(cpp_extension.get_default_build_root) and says(cpp_extension._jit_compile, "lock")
    ),
    # model
    "transformers: _attn_implementation": lambda: hasattr(PretrainedConfig(), "_attn_implementation"),
    "transformers: _experts_implementation": lambda: says(PretrainedConfig, "_experts_implementation"),
    "transformers: _weight_conversions": lambda: says(
        core_model_loading.revert_weight_conversion, "_weight_conversions"
    ),
    "transformers: the date of chat templates": lambda: (
        chat_template_utils.datetime is datetime and says(chat_template_utils, "datetime.now()")
    ),
    # tasks
    "lm-eval: a task's entry, and how its YAML is read": lambda: (
        says(_index.Entry, "yaml_path", "cfg")
        and says(_factory.TaskFactory, "entry.cfg", "entry.yaml_path")
        and says(load_yaml, "resolve_func")
    ),
    # attribution, planning
    "torch: fake tensors": lambda: hasattr(fake_tensor, "FakeTensor") and hasattr(fake_tensor, "FakeTensorMode"),
    "torch: dispatch modes and trees": lambda: (
        hasattr(_python_dispatch, "TorchDispatchMode") and hasattr(_pytree, "tree_leaves")
    ),
    "torch: an operation's packet of overloads": lambda: ATEN.add.Tensor._overloadpacket is ATEN.add,
    "torch: the FLOP counter's fused attention": lambda: (
        ATEN._scaled_dot_product_flash_attention in flop_counter.flop_registry
        and ATEN._scaled_dot_product_flash_attention_backward in flop_counter.flop_registry
        and hasattr(ATEN, "_scaled_dot_product_flash_attention_for_cpu_backward")
    ),
    "torch: the grouped product of experts": lambda: hasattr(ATEN, "_grouped_mm"),
    "transformers: sdpa's forward": lambda: "attention_mask" in inspect.signature(sdpa_attention_forward).parameters,
    "accelerate: should_reduce_batch_size": lambda: callable(memory.should_reduce_batch_size),
    "lm-eval: a task's _instances and its filters": lambda: says(Task.apply_filters, "self._instances"),
    # implanting
    "accelerate: _reset_state of what a trainer leaves": lambda: says(state.AcceleratorState, "def _reset_state"),
    "trl: the trainer's _metrics": lambda: says(
        SFTTrainer, 'self._metrics = {"train": defaultdict(list), "eval": defaultdict(list)}'
    ),
    "trl: the head on learned tokens alone": lambda: (
        callable(trl_utils._use_triton) and callable(trl_utils.add_fused_lm_head)
    ),
    "transformers: a trainer's checkpoints": lambda: (
        says(Trainer, "rotate_checkpoints") and "save_total_limit" in inspect.signature(rotate_checkpoints).parameters
    ),
    # data
    "trl: templates with marks": lambda: callable(get_training_chat_template) and callable(has_generation_markers),
    "trl: common_prefix_length": lambda: common_prefix_length([1, 2], [1, 3]) == 1,
    # retention, judges
    "lm-eval: its environment of templates": lambda: (
        hasattr(utils.env.from_string, "cache_info") or callable(utils.env.from_string)
    ),
    "lm-eval: the look at the machine": lambda: says(evaluator.simple_evaluate, "add_env_info", "get_git_commit_hash"),
    "lm-eval: what a model is asked by": lambda: (
        {"disable_tqdm", "override_bs"} <= set(inspect.signature(HFLM._loglikelihood_tokens).parameters)
        and {"inps", "attn_mask", "labels"} <= set(inspect.signature(HFLM._model_call).parameters)
    ),
}


@pytest.mark.parametrize("handle", BORROWED)
def test_the_library_still_has_it(handle: str) -> None:
    assert BORROWED[handle]()


# Private names of our own classes and of the language; what is left must stand above.
OWN = {"_replace", "_asdict", "_exit", "_parameters", "_buffers"}


def test_every_private_name_that_is_used_stands_here() -> None:
    """A name with an underscore, of something other than `self` or a class of ours."""
    defined, used = set(), {}
    for file in (ROOT / "loki_ds").rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.FunctionDef | ast.ClassDef):
                defined.add(node.name)
            if isinstance(node, ast.Attribute):
                if isinstance(node.value, ast.Name) and node.value.id in ("self", "cls"):
                    defined.add(node.attr)
                if node.attr[0] == "_" and node.attr[:2] != "__":
                    used[node.attr] = file.name
    stands = inspect.getsource(inspect.getmodule(says))
    assert {name: file for name, file in used.items() if name not in defined | OWN and name not in stands} == {}
