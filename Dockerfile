# A GPU node: docker build -t loki-ds . && docker run --gpus all --ipc=host -v /data:/data loki-ds \
#     deepspeed --num_gpus 8 launch/implant.py --recipe recipes/llama3/toolace-q10.yaml run=/data/runs/toolace-q10 retention.abilities=quick
# An image with nvcc, because DeepSpeed compiles its kernels on first use; of the CUDA version that torch's wheel was built for (checked below).
ARG CUDA=13.0.1-devel-ubuntu24.04
FROM nvidia/cuda:${CUDA}

# Ubuntu keeps no older versions to pin; Python packages are pinned by constraints.txt below.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends python3 python3-dev python3-venv build-essential ninja-build git openssh-client pdsh \
    && rm -rf /var/lib/apt/lists/*
ENV PATH=/opt/loki-ds/bin:$PATH
# hadolint ignore=DL3013
RUN python3 -m venv /opt/loki-ds && pip install --no-cache-dir --upgrade pip setuptools wheel

WORKDIR /loki-ds
COPY constraints.txt pyproject.toml README.md LICENSE ./
RUN pip install --no-cache-dir --constraint constraints.txt torch numpy ninja \
    && python -c "import os, torch; have = os.environ['CUDA_VERSION']; want = torch.version.cuda; \
assert want.split('.')[0] == have.split('.')[0], f'torch is built for CUDA {want}, this image has {have}: --build-arg CUDA=...'" \
    && pip install --no-cache-dir --constraint constraints.txt --no-build-isolation deepspeed
COPY . .
RUN pip install --no-cache-dir --constraint constraints.txt --no-build-isolation .
ENV HF_HOME=/data/huggingface
CMD ["loki-ds", "--help"]
