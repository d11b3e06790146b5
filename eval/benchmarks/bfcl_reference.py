"""The leaderboard's own judge on lines of JSON: category, functions, allowed answers, text.

    pip install --no-deps bfcl-eval tenacity filelock          # an environment of its own
    THAT/python eval/benchmarks/bfcl_reference.py < asked > judged

Only what judges Python prompting is imported: the package's list of models imports every vendor's
client, and its Java and JavaScript parsers an older tree_sitter.
"""

import json
import os
import sys
import tempfile
import types
import warnings
from typing import Any

os.environ.setdefault("BFCL_PROJECT_ROOT", tempfile.mkdtemp())
warnings.simplefilter("ignore")


class Models(dict):
    """Every model: one whose function names keep their dots."""

    def __missing__(self, name: str) -> Any:
        return types.SimpleNamespace(underscore_to_dot=False)


def stub(name: str, **has: Any) -> None:
    sys.modules[name] = types.ModuleType(name)
    vars(sys.modules[name]).update(has)


stub("bfcl_eval.constants.model_config", MODEL_CONFIG_MAPPING=Models())
stub("bfcl_eval.model_handler.parser.java_parser", parse_java_function_call=None)
stub("bfcl_eval.model_handler.parser.js_parser", parse_javascript_function_call=None)

from bfcl_eval.constants.enums import Language, ReturnFormat  # noqa: E402
from bfcl_eval.eval_checker.ast_eval.ast_checker import ast_checker  # noqa: E402
from bfcl_eval.model_handler.utils import default_decode_ast_prompting  # noqa: E402
from bfcl_eval.utils import is_empty_output, is_function_calling_format_output  # noqa: E402


def judged(category: str, functions: list, expected: list, text: str) -> bool | None:
    """None where the leaderboard's own evaluation ends with a traceback."""
    try:
        decoded = default_decode_ast_prompting(text, ReturnFormat.PYTHON, False)
    except Exception:  # noqa: BLE001 (as its own runner does)
        decoded = None
    if "relevance" in category:
        called = decoded is not None and not is_empty_output(decoded)
        return called is ("irrelevance" not in category)
    if decoded is None or not is_function_calling_format_output(decoded):
        return False
    try:
        return bool(ast_checker(functions, decoded, expected, Language.PYTHON, category, "any")["valid"])
    except Exception:  # noqa: BLE001 (whatever it ends with)
        return None


if __name__ == "__main__":
    for line in sys.stdin:
        print(json.dumps(judged(*json.loads(line))))
