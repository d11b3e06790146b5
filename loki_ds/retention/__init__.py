"""Retain: the same lm-eval tasks on two models, paired document by document.

`question` is what both are asked and where their answers are kept; `evaluation` has a model's
documents evaluated in processes of their own, each of which is a `worker` (`__main__` starts it);
`harness` is lm-eval, `samples` reads what it found, `messages` is what they hand each other;
`logged` reads the same of what lm-eval wrote elsewhere, `lighteval_details` of what lighteval did
(`lighteval_documents`: of one task); `as_logged` writes answers as lm-eval does. Where a task may
be stopped, `blocks` asks it piece by piece and `stopping` says when it is decided. `pairing` joins
two arms, `statistics` says what the pairs of a task show (`mean_change`: of scores that are not 0
and 1, and of groups), `forgetting` what those of all tasks do.
"""
