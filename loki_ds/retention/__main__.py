"""`python -m loki_ds.retention REQUEST.json RESULT.json ...`: an arm (`arm`), whose imports are
most of its start.
"""

from loki_ds.distributed.quick_imports import quick_imports

with quick_imports():
    import lm_eval.evaluator
    import lm_eval.models.huggingface  # noqa: F401

    from loki_ds.retention.arm import main

main()
