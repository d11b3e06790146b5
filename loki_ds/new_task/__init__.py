"""Judges of what a new task taught, for the lm-eval tasks in `eval/tasks/`: `tool_calls` as the
Berkeley Function Calling Leaderboard judges, `ranking` by the measures of information retrieval.
"""
