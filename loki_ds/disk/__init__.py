"""What lies on the disk: `files` are written whole or not at all, `run_folder` is where a run keeps
its results, `text` reads what people wrote.
"""
