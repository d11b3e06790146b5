"""lm-eval's prompts of a task's documents: what a model will not see, known before it is asked."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random
from types import MethodType, SimpleNamespace
from typing import Any

from loki_ds.refusal import Refusal, short
from loki_ds.tasks.judging import try_judging
from loki_ds.tasks.metrics import metrics_of

LOOKED_AT = 24  # documents of a task: half of them the longest, half drawn
MOST_ANSWER = 256  # tokens of an answer where a task says nothing, as lm-eval has it


@dataclass(frozen=True)
class Asking:
    """How a task is asked.

    shots: None for the task's own number; chats: whether by the chat template; most: tokens that
    the model was made for, None where nobody knows; count: tokens of a text; template: what makes a
    text of turns (lm-eval's `apply_chat_template`).
    """

    shots: int | None
    chats: bool
    seed: int
    most: int | None
    count: Callable[[str], int]
    template: Callable[..., str]


@dataclass(frozen=True)
class Prompts:
    """What was found of a task's: documents looked at, of these the ones whose prompt is cut, and
    the tokens of the longest prompt with room for its answer.
    """

    looked_at: int
    cut: int
    longest: int


def look_at_prompts(name: str, task: Any, asking: Asking) -> Prompts:
    """Make the prompts of the longest documents, and of some others, as the evaluation will.

    Raises:
        Refusal: too few documents for the shots, answers longer than the model's context, or a
            document that the task's own code cannot put.
    """
    task.set_config("num_fewshot", shots_of(task, asking.shots))
    draws_shots_by_document(task, asking.seed)
    places = _some(task.eval_docs)
    lengths = [_length(name, task, task.eval_docs[place], asking) for place in places]
    most = asking.most
    cut = 0 if most is None else sum(length > most for length in lengths)
    return Prompts(len(places), cut, max(lengths))


def draws_shots_by_document(task: Any, seed: int) -> Any:
    """The task, drawing shots by the seed and the document alone, and never the document itself.

    lm-eval draws from one stream over all documents, so that the shots of each would depend on how
    many processes share them. Where a task has no other split it draws from the documents that it
    asks, this one among them.
    """
    context, sampler, asked = task.fewshot_context, task.sampler, {}
    sample, from_its_own = sampler.sample, _draws_from_its_own(task)

    def fewshot_context(doc: Any, *given: Any, **named: Any) -> Any:
        asked["document"] = doc
        task.set_fewshot_seed(f"{seed}-{json.dumps(doc, sort_keys=True, default=str)}")
        return context(doc, *given, **named)

    def sample_others(n: int, eval_doc: Any = None, **named: Any) -> Any:
        return sample(n, eval_doc=asked["document"] if from_its_own else eval_doc, **named)

    task.fewshot_context, sampler.sample = fewshot_context, sample_others
    return task


def context_of(task: Any, document: Any, shots: int, template: Callable[..., str] | None) -> Any:
    """lm-eval's prompt of a document, by a chat template or none; in some tasks one a choice."""
    chats = template is not None
    return task.fewshot_context(
        document,
        shots,
        apply_chat_template=chats,
        fewshot_as_multiturn=chats,
        chat_template=template,
        gen_prefix=task.doc_to_prefix(document),
    )


def template_of(tokenizer: Any, arguments: dict[str, Any]) -> Callable[..., str]:
    """lm-eval's own way from turns to a text, of a model that is only a tokenizer."""
    from lm_eval.models.huggingface import HFLM

    model: Any = SimpleNamespace(tokenizer=tokenizer, chat_template_args=arguments)
    return MethodType(HFLM.apply_chat_template, model)


def _draws_from_its_own(task: Any) -> bool:
    named = task.fewshot_cfg.split is not None or task.fewshot_cfg.samples is not None
    return not (named or task.has_training_docs() or task.has_validation_docs())


def shots_of(task: Any, shots: int | None) -> int:
    """How many shots a task gets, as lm-eval's `simple_evaluate` has it: its own 0 is fixed.

    shots: that are asked for, None for its own number.
    """
    declared = task.config.num_fewshot
    return declared or 0 if shots is None or declared == 0 else shots


def _some(documents: Sequence[Any]) -> list[int]:
    """Places of the longest documents, and of as many others, the same ones each time."""
    by_length = sorted(range(len(documents)), key=lambda i: -len(json.dumps(documents[i], default=str)))
    longest, others = by_length[: LOOKED_AT // 2], by_length[LOOKED_AT // 2 :]
    return longest + Random(0).sample(others, min(len(others), LOOKED_AT // 2))


def _length(name: str, task: Any, document: Any, asking: Asking) -> int:
    """Tokens of a document's longest prompt with (room for) an answer; judges the right answer."""
    template = asking.template if asking.chats else None
    try:
        context = context_of(task, document, task.config.num_fewshot, template)
        requests = task.construct_requests(
            doc=document, ctx=context, metadata=(name, 0, 1), apply_chat_template=asking.chats, chat_template=template
        )
    except Refusal:
        raise
    except Exception as error:  # whatever a task's own code raises
        shots = task.config.num_fewshot
        if shots and len(list(task.fewshot_docs())) <= shots:
            there = len(list(task.fewshot_docs()))
            raise Refusal(f"task {name} asks for {shots} shots, and has {there} documents to draw them from") from None
        said = f"{type(error).__name__}: {short(error, 200)}"
        raise Refusal(f"task {name} cannot put its documents: {said}") from error
    requests = requests if isinstance(requests, list) else [requests]
    longest = max(_tokens(name, request.arguments, asking) for request in requests)
    if not task.config.unsafe_code:  # which runs what an answer says
        try_judging(name, task, document, requests, metrics_of(task)[0])
    return longest


def _tokens(name: str, arguments: tuple, asking: Asking) -> int:
    """Tokens of one request: what the model reads, and of an answer that it writes the most."""
    if len(arguments) == 1:
        return 0  # a text of any length is read in windows
    asked, answer = arguments
    if not isinstance(answer, dict):
        return asking.count(asked) + asking.count(answer) - 1  # the last token is predicted, not read
    most = int(answer.get("max_gen_toks", answer.get("max_new_tokens", MOST_ANSWER)) or 0)
    if not asked:
        raise Refusal(f"task {name} has a document with an empty prompt, after which nothing can be written")
    if most < 1:
        raise Refusal(f"task {name} asks for answers of {most} tokens (max_gen_toks), allowed is 1 and more")
    if asking.most is not None and most >= asking.most:
        raise Refusal(
            f"task {name} asks for answers of up to {most} tokens (max_gen_toks), and the model was made for "
            f"{asking.most} in all; say fewer in the task's generation_kwargs"
        )
    return asking.count(asked) + most
