"""Ranks and what is between them: `launcher` says what started one, `ranks` how they join, speak
and end, `device` what each computes on, `builds` what DeepSpeed has torch build for it,
`shared_folder` which nodes see the same files, `quick_imports` starts them sooner. `zero` alone
knows DeepSpeed's partitioning.

Nothing here knows what rows, methods or recipes are.
"""
