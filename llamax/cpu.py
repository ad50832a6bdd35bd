"""The CPU backend: makes megatron.core, which assumes CUDA, run on the CPU under gloo.

megatron-core asks `torch.cuda` for the current device, moves tensors with `.cuda()`, names "cuda" when it makes
small tensors, and compares `Tensor.type()` with CUDA type names. `install()` answers all of these with the CPU. It
replaces attributes of torch for the whole process and is called once, before any model or optimizer is built. A
TorchFunctionMode would do the same, but costs a Python call at every operation, which a small model feels.
"""

import functools

import torch
from megatron.core.tensor_parallel import random


def install():
    """Redirect what megatron.core expects of CUDA to the CPU, for the rest of the process."""
    cpu = torch.device("cpu")
    # `with torch.device(…)` looks up the factories it serves at its first use. After they are replaced it would miss
    # them, and transformers, which builds models under torch.device("meta"), leave RoPE's frequencies uninitialised.
    with cpu:
        torch.empty(0)
    torch.cuda.current_device = lambda: cpu
    torch.cuda.set_device = lambda device: None
    torch.cuda.synchronize = lambda device=None: None
    torch.Tensor.cuda = lambda tensor, *args, **kwargs: tensor
    torch.Tensor.type = _cuda_type_name(torch.Tensor.type)
    # Recomputing activations restores both generators; here they are one.
    random._get_cuda_rng_state = lambda *args, **kwargs: torch.get_rng_state()
    random._set_cuda_rng_state = lambda state, *args, **kwargs: torch.set_rng_state(state)
    for name in ("empty", "zeros", "ones", "full", "tensor", "arange", "rand", "randn"):
        setattr(torch, name, _on_cpu(getattr(torch, name)))


def _on_cpu(factory):
    """A tensor factory that reads device="cuda" as the CPU."""

    @functools.wraps(factory)
    def wrapper(*args, **kwargs):
        if str(kwargs.get("device", "")).startswith("cuda"):
            kwargs["device"] = "cpu"
        return factory(*args, **kwargs)

    return wrapper


def _cuda_type_name(original):
    """Tensor.type() with no argument says torch.cuda.FloatTensor and so on: megatron.core's optimizers compare it."""

    @functools.wraps(original)
    def wrapper(tensor, *args, **kwargs):
        result = original(tensor, *args, **kwargs)
        return result.replace("torch.", "torch.cuda.", 1) if isinstance(result, str) else result

    return wrapper
