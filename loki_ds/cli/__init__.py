"""What is typed: `commands` reads the line, `arguments` says what each command takes. The commands
stand in `before` (a run), `jobs` (that train), `judging` and `rows` (in files); `output` is how
they speak, `doctor` whether the main job can start on this machine.
"""
