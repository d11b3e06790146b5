"""The main job, from the project's folder (`loki_ds.implant`).

deepspeed --num_gpus 8 launch/implant.py --recipe recipes/tiny/loki.yaml [key=value ...]
"""

from loki_ds.implant import main

if __name__ == "__main__":
    main()
