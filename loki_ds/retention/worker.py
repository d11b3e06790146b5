"""One arm of the paired evaluation, or a share of it: a model through lm-eval in its own process.

`python -m loki_ds.retention REQUEST.json RESULT.json ...`, started by `evaluation`. Of several
requests in a row each loads its model, unless the last one had it and only the implant differs.
Knows lm-eval; of the other arm at most the answers by which it may stop.
"""

import gc
import hashlib
import json
import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from importlib.metadata import version
from pathlib import Path
from random import Random
from typing import Any

from loki_ds.disk.files import write_json
from loki_ds.distributed.launcher import end_with_parent
from loki_ds.model.adapters import with_adapter
from loki_ds.model.classes import load_whole
from loki_ds.model.template_date import one_date
from loki_ds.recipe.sections import TaskGroup
from loki_ds.refusal import shown_once
from loki_ds.retention.blocks import Places, answers_of_base, until_decided
from loki_ds.retention.messages import ArmResult, Request, TaskSamples
from loki_ds.retention.samples import samples_of
from loki_ds.tasks.loading import task_manager
from loki_ds.tasks.prompts import draws_shots_by_document

SEED = 1234  # lm-eval's own
LIBRARIES = ("lm_eval", "transformers", "torch")


def run_lm_eval(request: Request, folder: Path) -> ArmResult:
    """Load the model, and evaluate this process' share of the documents of every group of tasks.

    folder: where processes that share documents leave word for each other.
    """
    return evaluated(load(request), request, folder)


def evaluated(model: Any, request: Request, folder: Path) -> ArmResult:
    """What `run_lm_eval` gives, on a model that is loaded."""
    manager = task_manager(request.names, request.include_path, "retention")
    part, of = request.part
    base = answers_of_base(request.stop) if request.stop else {}
    done: dict[str, TaskSamples] = {}
    for number, group in enumerate(request.groups):
        tasks = manager.load(group.tasks)["tasks"]
        drawn = {name: _drawn(name, task, group.limit, request) for name, task in tasks.items()}
        asked = {name: draws_shots_by_document(task, request.seed) for name, task in tasks.items()}
        ask = partial(_ask, model, request, group, asked, manager)
        if request.stop is not None and number < request.stop.abilities:
            done |= until_decided(request, request.stop, base, group.tasks, drawn, ask, folder)
        else:
            done |= ask({name: places[part::of] for name, places in drawn.items()})
    return {"tasks": done, "tokenizer": _tokenizer_digest(model), "libraries": library_versions()}


@contextmanager
def _implanted(model: Any, implant: str | None) -> Iterator[None]:
    """lm-eval's model with an implant's rows in it, for a while; that they fit, and that the base's
    are back, is looked at bit by bit.
    """
    if implant is None:
        yield
        return
    from loki_ds.export.in_memory import apply_implant, revert_implant

    apply_implant(model.model, implant)
    yield
    revert_implant(model.model, implant)


def load(request: Request) -> Any:
    """lm-eval's model, of one that is loaded here: what it loads itself may lack tensors, and a
    wrapper of text and pictures it would not ask for text.

    Raises:
        Refusal: the model or its adapter is not whole.
    """
    from loki_ds.retention.harness import LeanHFLM

    logging.getLogger("lm_eval").setLevel(logging.ERROR)  # its advice is for who runs lm-eval
    placed = "auto" if request.devices_per_model > 1 else {"": request.device}
    model = load_whole(Path(request.model), request.trust_remote_code, dtype=request.dtype, device_map=placed)
    if request.adapter:
        model = with_adapter(model, Path(request.adapter))
    return LeanHFLM(
        model,
        tokenizer=request.tokenizer or request.model,
        trust_remote_code=request.trust_remote_code,
        batch_size=request.batch_size,
        chat_template_args={**request.chat_template_args},
        think_end_token=request.think_end_token,
    )


def _drawn(name: str, task: Any, limit: int | None, request: Request) -> list[int]:
    """A task's documents: `limit` drawn by the seed, the same on both arms, and the asked half."""
    count = len(task.eval_docs)
    drawn = sorted(Random(f"{request.seed}-{name}").sample(range(count), min(limit or count, count)))
    halves = {None: drawn, "choosing": drawn[::2], "confirming": drawn[1::2]}
    return halves[request.half]


def _ask(
    model: Any, request: Request, group: TaskGroup, tasks: dict[str, Any], manager: Any, places: Places
) -> dict[str, TaskSamples]:
    """Some documents of a group's tasks, by the names that were asked for; of none nothing."""
    chosen = {name: of_task for name, of_task in places.items() if of_task}
    if not chosen:
        return {}  # fewer documents than processes
    results = _evaluate(model, request, group, [tasks[name] for name in chosen], manager, chosen)
    return {task.name: samples_of(task, tasks, results) for task in request.tasks if task.name in group.tasks}


@one_date()
def _evaluate(model: Any, request: Request, group: TaskGroup, tasks: list[Any], manager: Any, chosen: Places) -> Any:
    """lm-eval's `simple_evaluate`, allowed to run model-written code only if the recipe says so."""
    from loki_ds.retention.harness import simple_evaluate

    if request.allow_code_execution:
        os.environ["HF_ALLOW_CODE_EVAL"] = "1"
    whole = group.limit is None and request.half is None and request.part[1] == 1 and request.stop is None
    return simple_evaluate(
        model,
        tasks=tasks,
        num_fewshot=group.num_fewshot,
        samples=None if whole else chosen,
        apply_chat_template=group.apply_chat_template,
        task_manager=manager,
        bootstrap_iters=0,
        torch_random_seed=SEED + request.part[0],  # or all processes would draw the same answers
        confirm_run_unsafe_code=request.allow_code_execution,
    )


def _tokenizer_digest(model: Any) -> str:
    """The digest of what turns a document into tokens: vocabulary, rules and chat template."""
    tokenizer = model.tokenizer
    parts = [
        json.dumps(tokenizer.get_vocab(), sort_keys=True),
        str(tokenizer.chat_template),
        json.dumps(tokenizer.special_tokens_map, default=str),
    ]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def library_versions() -> dict[str, str]:
    """The versions that may change a score."""
    return {name: version(name) for name in LIBRARIES}


def main() -> None:
    end_with_parent()
    with shown_once():
        model, loaded = None, None
        for asked, answers in zip(sys.argv[1::2], sys.argv[2::2], strict=True):
            request = Request.model_validate_json(Path(asked).read_text())
            if loaded != (wanted := (request.model, request.adapter)):
                del model  # before the next one is loaded
                gc.collect()
                model, loaded = load(request), wanted
            with _implanted(model, request.implant):
                write_json(Path(answers), evaluated(model, request, Path(answers).parent))
