"""Judges of what a new task taught, for the lm-eval tasks in `eval/tasks/`: `tool_calls` as the
Berkeley Function Calling Leaderboard judges them (`notations` reads the calls in a text,
`python_calls` those written as Python), `ranking` by nDCG, MAP and MRR. `held_out_calls` is a task
of the user's own chats, `as_written` one whose answers nobody judges.
"""
