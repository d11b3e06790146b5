"""What is typed: `commands` are those of `loki-ds`, `arguments` what each takes; `doctor` says
whether the main job can start on this machine.
"""
