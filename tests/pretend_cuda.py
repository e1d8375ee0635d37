"""A pretend CUDA device for machines without one. It computes on the CPU and is strict where CUDA is.

Tensors "on the device" are wrappers that say `device=cuda`. Operations refuse operands of both devices, generators of
the CPU and `.numpy()`, and every operation for which a program would have to wait for a GPU is counted with the line
of ours that asked for it. Kernels, streams, memory and speed are out of its reach, and so is torch.compile.

`install` changes torch for the life of the process: call it in a child (`forked.Child`).
"""

import contextlib
import re
import traceback
from collections import Counter
from collections.abc import Iterator

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map

CUDA, CPU = torch.device("cuda", 0), torch.device("cpu")
aten = torch.ops.aten
# what reads a number or a size from the device
READS = {
    aten._local_scalar_dense.default,
    aten.equal.default,
    aten.is_nonzero.default,
    aten.nonzero.default,
    aten.masked_select.default,
    aten._unique2.default,
    aten.unique_dim.default,
    aten.repeat_interleave.Tensor,
}
INDEXING = {aten.index.Tensor, aten.index_put_.default, aten.index_put.default, aten._index_put_impl_.default}
syncs: Counter[str] = Counter()  # line -> how often it waited for the device


def install() -> None:
    """Have torch believe that there is one GPU, on which `running` runs what is within."""
    answers = {
        "_lazy_init": None,
        "is_available": True,
        "device_count": 1,
        "current_device": 0,
        "set_device": None,
        "is_bf16_supported": True,
        "get_device_name": "Pretend",
        "get_device_capability": (9, 0),
        "synchronize": None,
        "empty_cache": None,
        "max_memory_allocated": 0,
        "manual_seed_all": None,
        "manual_seed": None,
        "_is_in_bad_fork": False,
        "get_rng_state": torch.zeros(16, dtype=torch.uint8),
        "set_rng_state": None,
        "mem_get_info": (2**34, 2**35),
    }
    for name, answer in answers.items():
        setattr(torch.cuda, name, lambda *args, _answer=answer, **values: _answer)
    # A torch that was built with CUDA would ask the driver whether a graph is being captured.
    torch.optim.Optimizer._accelerator_graph_capture_health_check = lambda self: None
    torch.Tensor.pin_memory = lambda self, *args, **values: self
    torch.cuda.Event = Event
    torch.__future__.set_overwrite_module_params_on_conversion(True)
    torch.inference_mode = lambda *args, **values: torch.no_grad()  # its tensors take no wrapper
    autocast = torch.autocast.__init__
    torch.autocast.__init__ = lambda self, device_type, *args, **values: autocast(
        self, "cpu" if device_type == "cuda" else device_type, *args, **values
    )
    _group_by_device()
    move = torch.nn.Module.to

    def to(self, *args, **values):  # a module that is there already is left alone: fake tensors are not swapped twice
        device = next((one for one in [*args, values.get("device")] if isinstance(one, str | torch.device)), None)
        dtype = next((one for one in [*args, values.get("dtype")] if isinstance(one, torch.dtype)), None)
        tensors = [*self.parameters(), *self.buffers()]
        there = _on_cuda(device) and all(isinstance(one, OnDevice) for one in tensors)
        if there and values.get("memory_format") is None and all(dtype in (None, one.dtype) for one in tensors):
            return self
        return move(self, *args, **values)

    torch.nn.Module.to = to


class Event:
    """Of a device on which all has happened when it is asked for."""

    def record(self) -> None: ...

    def synchronize(self) -> None: ...


def _group_by_device() -> None:
    """Tensors are grouped in C++, which does not see the pretend device."""
    from torch.nn.utils import clip_grad

    group = clip_grad._group_tensors_by_device_and_dtype

    def grouped(lists, *args, **values):
        found = group(lists, *args, **values)
        there = any(isinstance(one, OnDevice) for one in lists[0])
        return {(CUDA if there else device, dtype): value for (device, dtype), value in found.items()}

    clip_grad._group_tensors_by_device_and_dtype = grouped


@contextlib.contextmanager
def running() -> Iterator[None]:
    """Within, `cuda` is the pretend device."""
    with Dispatch(), Functions():
        yield


def waits() -> int:
    """How often the device was waited for so far."""
    return sum(syncs.values())


def _waited(why: str) -> None:
    syncs[f"{why}: {_line()}"] += 1


def _line() -> str:
    """The innermost line of ours, after the one of diffusers or transformers that it called, if any."""
    inner = ""
    for frame in reversed(traceback.extract_stack()):
        if "/ldm/" in frame.filename:
            return f"{inner}{frame.filename.rpartition('/ldm/')[2]}:{frame.lineno} {frame.line}"
        package = re.search(r"/(diffusers|transformers)/(.*)", frame.filename)
        inner = inner or (f"{package[1]} {package[2]}:{frame.lineno}, from " if package else "")
    return "outside of ldm"


class OnDevice(torch.Tensor):
    """A tensor on the pretend device; `real` has its numbers."""

    @staticmethod
    def __new__(cls, real: torch.Tensor, requires_grad: bool = False):
        self = torch.Tensor._make_wrapper_subclass(
            cls,
            real.shape,
            strides=real.stride(),
            storage_offset=real.storage_offset(),
            dtype=real.dtype,
            device="cpu",
            requires_grad=requires_grad,
            layout=real.layout,
        )
        self.inner = real
        return self

    __torch_function__ = torch._C._disabled_torch_function_impl
    device = property(lambda self: CUDA)
    is_cuda = property(lambda self: True)
    is_cpu = property(lambda self: False)

    def get_device(self):
        return 0

    def untyped_storage(self):
        return self.inner.untyped_storage()

    def data_ptr(self):
        return self.inner.data_ptr()

    def numpy(self, *args, **values):
        raise TypeError(f"pretend device: can't convert a cuda tensor to numpy, at {_line()}")

    def __repr__(self, **values):
        return f"OnDevice({self.inner!r})"

    def __deepcopy__(self, memo):
        if id(self) not in memo:
            copy = OnDevice(self.inner.detach().clone())
            parameter = isinstance(self, torch.nn.Parameter) or getattr(self, "_is_param", False)
            memo[id(self)] = torch.nn.Parameter(copy, requires_grad=self.requires_grad) if parameter else copy
        return memo[id(self)]

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        return _run(func, args, kwargs or {})


def _on_cuda(device) -> bool:
    return device is not None and torch.device(device).type == "cuda"


def _inner(value):
    return value.inner if isinstance(value, OnDevice) else value


def _copied(func, args, values):
    """Copies between the devices, which may have to wait."""
    if func is aten.copy_.default:
        target, source = args[:2]
        blocks = not (args[2] if len(args) > 2 else values.get("non_blocking", False))
        if blocks and isinstance(source, OnDevice) != isinstance(target, OnDevice) and source.ndim:
            _waited("copy")
        _inner(target).copy_(_inner(source))
        return target
    source, wanted = args[0], values.pop("device", None)
    there, blocks = isinstance(source, OnDevice), not values.pop("non_blocking", False)
    to_cuda = there or _on_cuda(wanted)  # `Functions` copies to the CPU; here torch's C++ asks for the same device
    if blocks and there != to_cuda:
        _waited("copy")
    values.pop("pin_memory", None)
    out = func(_inner(source), **{name: value for name, value in values.items() if value is not None})
    return OnDevice(out) if to_cuda else out


def _check(func, tensors, generator) -> None:
    """What CUDA refuses. A number on the CPU may join in; autograd's own sums of gradients are not looked at."""
    if generator is not None and generator.device.type == "cpu":
        raise RuntimeError(f"pretend device: {func} expects a cuda generator, got one of the cpu, at {_line()}")
    if torch._C._current_graph_task_id() != -1 or "_fused_adam" in str(func):
        return
    for one in tensors:
        if isinstance(one, OnDevice) or (one.ndim == 0 and func not in (aten.cat.default, aten.stack.default)):
            continue
        if func in INDEXING:
            _waited("index on the CPU")
            continue
        raise RuntimeError(f"pretend device: {func} met cuda and a cpu tensor {tuple(one.shape)}, at {_line()}")


def _run(func, args, values):
    if func is aten._fused_sdp_choice.default:
        return 0
    if func in (aten.copy_.default, aten._to_copy.default):
        return _copied(func, args, dict(values))
    flat, _ = tree_flatten((args, values))
    tensors = [one for one in flat if isinstance(one, torch.Tensor)]
    mixed = any(isinstance(one, OnDevice) for one in tensors)
    wanted = values.get("device")
    on_cuda = mixed or _on_cuda(wanted)  # torch's own C++ asks for the CPU, where it sees the wrappers
    if wanted is not None:
        values = {name: value for name, value in values.items() if name != "pin_memory"} | {"device": CPU}
    if mixed and func in READS:
        _waited(str(func))
    if mixed:
        masks = [one for one in tensors if isinstance(one, OnDevice) and one.dtype == torch.bool]
        if func in INDEXING and masks:
            _waited("boolean index")
        _check(func, tensors, values.get("generator"))
    elif on_cuda:
        _check(func, [], values.get("generator"))
    out = func(*tree_map(_inner, args), **tree_map(_inner, values))
    written = [
        (i, one.name)
        for i, one in enumerate(func._schema.arguments)
        if one.alias_info is not None and one.alias_info.is_write
    ]
    returns = func._schema.returns
    if written and returns and returns[0].alias_info is not None and returns[0].alias_info.is_write:
        position, name = written[0]
        return args[position] if position < len(args) else values[name]
    return tree_map(lambda one: OnDevice(one) if on_cuda and type(one) is torch.Tensor else one, out)


class Dispatch(TorchDispatchMode):
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return _run(func, args, kwargs or {})


class Functions(TorchFunctionMode):
    """`.to`, `.cuda` and `.cpu`, which torch would answer by the wrappers' true device."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        values = dict(kwargs or {})
        if _on_cuda(values.get("device")):
            values["device"] = CUDA
        if func is torch.Tensor.cuda:
            return _moved(args[0], CUDA)
        if func is torch.Tensor.cpu:
            return _moved(args[0], CPU)
        if func is torch.Tensor.tolist and isinstance(args[0], OnDevice):
            _waited("tolist")
            return args[0].inner.tolist()
        if func is torch.Tensor.to:
            return _to(func, args, values)
        return func(*args, **values)


def _to(func, args, values):
    tensor, device, dtype = args[0], values.get("device"), values.get("dtype")
    blocks = not (values.get("non_blocking") or any(one is True for one in args[2:3] + args[3:4]))
    for one in args[1:]:
        if isinstance(one, str | torch.device):
            device = torch.device(one)
        elif isinstance(one, torch.dtype):
            dtype = one
        elif isinstance(one, torch.Tensor):
            device, dtype = one.device, one.dtype
    target = tensor.device if device is None else torch.device(device)
    if target.type != tensor.device.type and "cuda" in (target.type, tensor.device.type):
        tensor = _moved(tensor, target, blocks)
    elif target.type not in ("cpu", "cuda"):
        return func(*args, **values)
    layout = {name: values[name] for name in ("memory_format", "copy") if values.get(name)}
    if not layout and dtype in (None, tensor.dtype):
        return tensor
    return func(tensor, dtype=dtype or tensor.dtype, **layout)


def _moved(tensor, device, blocks: bool = True):
    if (device.type == "cuda") == isinstance(tensor, OnDevice):
        return tensor
    if blocks and tensor.numel():
        _waited("copy")
    return (ToDevice if device.type == "cuda" else FromDevice).apply(tensor)


class ToDevice(torch.autograd.Function):
    @staticmethod
    def forward(ctx, tensor):
        return OnDevice(tensor.detach().clone())

    @staticmethod
    def backward(ctx, gradient):
        return _inner(gradient)


class FromDevice(torch.autograd.Function):
    @staticmethod
    def forward(ctx, tensor):
        return tensor.inner.clone()

    @staticmethod
    def backward(ctx, gradient):
        return OnDevice(gradient)
