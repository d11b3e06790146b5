"""Report: what a run kept and what it lost, as JSON, Markdown and one self-contained HTML page.

`schema` is `report.json` key by key, `build` makes it and renders it, `pictures` draws, `compare`
puts runs side by side.
"""
