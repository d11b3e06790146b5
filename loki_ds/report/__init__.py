"""Report: what a run kept and what it lost, as JSON, Markdown and one self-contained HTML page.

`schema` is `report.json` key by key, `origin` the run's part of it, `decisions` puts both sides of
one together, `verdict` says it at a glance, `build` makes it and renders it, `card` is the model
card's metadata, `pictures` draws, `trackers` sends figures on, `compare` puts runs side by side.
"""
