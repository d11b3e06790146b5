"""`python -m loki_ds.retention REQUEST.json RESULT.json ...`: a worker (`worker`), whose imports
are most of its start.
"""

from loki_ds.distributed.quick_imports import quick_imports

with quick_imports():
    import lm_eval.evaluator
    import lm_eval.models.huggingface  # noqa: F401

    from loki_ds.retention.worker import main

main()
