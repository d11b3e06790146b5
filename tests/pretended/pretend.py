"""Make a CPU-only torch pretend to be on a node of GPUs with NCCL, before any project code runs.

`import pretend` patches `torch.cuda` and `torch.distributed`; `fake_cuda` (C++) is the device
itself. What is not pretended raises, so nothing passes unseen. For tests only.
"""

import ctypes
import os
import sys
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

# Before torch asks for the first time whether there is a GPU, and keeps the answer.
assert "torch" not in sys.modules, "import pretend before torch"
_libraries = Path(find_spec("torch").submodule_search_locations[0]) / "lib"
for _name in ("libc10", "libtorch_cpu", "libtorch", "libtorch_python"):
    ctypes.CDLL(str(_libraries / f"{_name}.so"), ctypes.RTLD_GLOBAL)
BUILD = Path(__file__).parents[2] / "build/pretended"  # made by `build_device`
ctypes.CDLL(str(BUILD / "fake_cuda.so"), ctypes.RTLD_GLOBAL)

import torch  # noqa: E402
import torch.distributed as dist  # noqa: E402
from torch.distributed import distributed_c10d as c10d  # noqa: E402

sys.path.insert(0, str(BUILD))
import fake_cuda  # noqa: E402

cuda = torch.cuda
MEMORY = int(os.environ.get("FAKE_GPU_MEMORY", 8 * 2**30))


def _index(device=None):
    if device is None:
        return fake_cuda.current_device()
    if isinstance(device, int):
        return fake_cuda.current_device() if device < 0 else device
    device = torch.device(device)
    return fake_cuda.current_device() if device.index is None else device.index


class Stream:
    def __init__(self, device=None, priority=0, **_):
        self.device, self.cuda_stream = torch.device("cuda", _index(device)), 0

    def wait_stream(self, other): ...
    def wait_event(self, event): ...
    def synchronize(self):
        fake_cuda_sync("stream.synchronize")

    def query(self):
        return True

    def record_event(self, event=None):
        return event or Event()

    def __eq__(self, other):
        return isinstance(other, Stream) and other.device == self.device

    def __hash__(self):
        return hash(self.device)


class Event:
    def __init__(self, *_, **__): ...
    def record(self, stream=None): ...
    def wait(self, stream=None): ...
    def query(self):
        return True

    def synchronize(self):
        fake_cuda_sync("event.synchronize")

    def elapsed_time(self, other):
        return 0.0


def fake_cuda_sync(name):
    SYNCS[name] = SYNCS.get(name, 0) + 1


SYNCS = {}


@contextmanager
def stream(_):
    yield


class device:  # noqa: N801 (torch's name)
    def __init__(self, index):
        self.index = index if isinstance(index, int) else _index(index)

    def __enter__(self):
        self.before = fake_cuda.current_device()
        self.index >= 0 and fake_cuda.set_device(self.index)

    def __exit__(self, *_):
        fake_cuda.set_device(self.before)


def properties(device=None):
    return SimpleNamespace(
        name="Pretended H100",
        total_memory=MEMORY,
        major=9,
        minor=0,
        multi_processor_count=132,
        uuid="none",
        warp_size=32,
        max_threads_per_multi_processor=2048,
        gcnArchName="",
        L2_cache_size=50 * 2**20,
    )


def stats(device=None):
    i = _index(device)
    return {
        "allocated_bytes.all.current": fake_cuda.memory_allocated(i),
        "allocated_bytes.all.peak": fake_cuda.max_memory_allocated(i),
    }


torch._C._cuda_getDeviceCount = fake_cuda.device_count
torch._C._cuda_getDevice = fake_cuda.current_device
torch._C._cuda_setDevice = fake_cuda.set_device
torch._C._cuda_isInBadFork = False
torch._C._has_cuda = True
torch.version.cuda = "12.8"
cuda._lazy_init = lambda: None
cuda._initialized = True
cuda.is_initialized = lambda: True
cuda.init = lambda: None
cuda.is_available = lambda: fake_cuda.device_count() > 0
cuda.device_count = fake_cuda.device_count
cuda.current_device = fake_cuda.current_device
cuda.set_device = lambda d: fake_cuda.set_device(_index(d))
cuda.device = device
cuda.get_device_name = lambda d=None: "Pretended H100"
cuda.get_device_capability = lambda d=None: (9, 0)
cuda.get_device_properties = properties
cuda.is_bf16_supported = lambda *_, **__: True
cuda.get_arch_list = lambda: ["sm_90"]
cuda.synchronize = lambda d=None: fake_cuda_sync("cuda.synchronize")
cuda.empty_cache = lambda: None
cuda.ipc_collect = lambda: None
cuda.mem_get_info = lambda d=None: (MEMORY - fake_cuda.memory_allocated(_index(d)), MEMORY)
for where in (cuda, cuda.memory):
    where.set_per_process_memory_fraction = lambda share, d=None: fake_cuda.limit(_index(d), int(share * MEMORY))
    where.memory_allocated = lambda d=None: fake_cuda.memory_allocated(_index(d))
    where.memory_reserved = lambda d=None: fake_cuda.memory_allocated(_index(d))
    where.max_memory_allocated = lambda d=None: fake_cuda.max_memory_allocated(_index(d))
    where.max_memory_reserved = lambda d=None: fake_cuda.max_memory_allocated(_index(d))
    where.reset_peak_memory_stats = lambda d=None: fake_cuda.reset_peak(_index(d))
    where.reset_max_memory_allocated = lambda d=None: fake_cuda.reset_peak(_index(d))
    where.memory_stats = stats
    where.mem_get_info = cuda.mem_get_info
    where.empty_cache = cuda.empty_cache
cuda.memory_cached = cuda.memory_allocated
cuda.max_memory_cached = cuda.max_memory_allocated
cuda.Stream, cuda.Event, cuda.stream = Stream, Event, stream
cuda.streams.Stream, cuda.streams.Event = Stream, Event
cuda.current_stream = cuda.default_stream = lambda d=None: Stream(d)
cuda.set_stream = lambda s: None
cuda.manual_seed = cuda.manual_seed_all = lambda seed: None
cuda.random.manual_seed = cuda.random.manual_seed_all = lambda seed: None
for where in (cuda, cuda.random):
    where.get_rng_state = lambda d="cuda": torch.random.get_rng_state()
    where.get_rng_state_all = lambda: [torch.random.get_rng_state() for _ in range(fake_cuda.device_count())]
    where.set_rng_state = lambda s, d="cuda": None
    where.set_rng_state_all = lambda s: None
cuda.is_current_stream_capturing = lambda: False
cuda.nccl.version = lambda: (2, 27, 3)
cuda.nvtx = SimpleNamespace(
    range_push=lambda *_: None, range_pop=lambda: None, range=lambda *_: stream(None), mark=lambda *_: None
)
torch.Tensor.record_stream = lambda self, s: None
torch.backends.cuda.is_built = lambda: True
torch._C._cuda_init = lambda: None
torch._C._cuda_getCurrentRawStream = lambda i: 0
torch._C._cuda_synchronize = lambda: None
for _i in range(64):
    fake_cuda.limit(_i, MEMORY)


_Backend = torch._C._distributed_c10d.Backend


class _Kind(type):
    def __instancecheck__(cls, one):
        return isinstance(one, _Backend) and one.name() == "nccl"


class ProcessGroupNCCL(metaclass=_Kind):
    class Options(SimpleNamespace):
        _timeout = None

    def __new__(cls, store, rank, size, options):
        return fake_cuda.fake_nccl(c10d.ProcessGroupGloo(store, rank, size, timeout=options._timeout))


c10d.ProcessGroupNCCL = dist.ProcessGroupNCCL = ProcessGroupNCCL
c10d._NCCL_AVAILABLE = True
c10d.is_nccl_available = dist.is_nccl_available = lambda: True

# Products of 16-bit numbers into 32-bit ones, which only CUDA has.
_library = torch.library.Library("aten", "IMPL")


def _mm(a, b, out_dtype):
    return torch.mm(a.to(out_dtype), b.to(out_dtype))


def _mm_out(a, b, out_dtype, *, out):
    return out.copy_(_mm(a, b, out_dtype))


def _addmm(c, a, b, out_dtype, *, beta=1, alpha=1):
    return torch.addmm(c.to(out_dtype), a.to(out_dtype), b.to(out_dtype), beta=beta, alpha=alpha)


def _addmm_out(c, a, b, out_dtype, *, beta=1, alpha=1, out):
    return out.copy_(_addmm(c, a, b, out_dtype, beta=beta, alpha=alpha))


for _name, _kernel in {
    "mm.dtype": _mm,
    "mm.dtype_out": _mm_out,
    "addmm.dtype": _addmm,
    "addmm.dtype_out": _addmm_out,
}.items():
    _library.impl(_name, _kernel, "CUDA")

# NCCL takes a group down together (ncclCommFinalize waits for the node's other ranks); gloo just
# closes its sockets.
_destroy = c10d.destroy_process_group


def destroy_process_group(group=None):
    if group is None and dist.is_initialized() and dist.get_world_size() > 1 and dist.get_backend() == "nccl":
        dist.barrier()
    _destroy(group)


c10d.destroy_process_group = dist.destroy_process_group = destroy_process_group


# Kernels that only CUDA has.
def _histc(x, bins=100, min=0, max=0):
    return torch.histc(x.cpu().float(), bins, float(min), float(max)).to(x.device, x.dtype)


def _on_host(operation):
    """Convolutions choose their kernel by the device: they are made on the processor."""

    def compute(*given):
        there = next(one for one in given if isinstance(one, torch.Tensor)).device
        found = operation(*(one.cpu() if isinstance(one, torch.Tensor) else one for one in given))
        if isinstance(found, torch.Tensor):
            return found.to(there)
        return tuple(None if one is None else one.to(there) for one in found)

    return compute


_library.impl("histc", _histc, "CUDA")
_library.impl("convolution", _on_host(torch.ops.aten.convolution.default), "CUDA")
_library.impl("convolution_backward", _on_host(torch.ops.aten.convolution_backward.default), "CUDA")
