# SPDX-FileCopyrightText: The SmartSpec authors
# SPDX-License-Identifier: Apache-2.0
"""The CUDA operations as far as they can be tested without a GPU: how tensors are seen, what is
refused with which words, and what a build or a machine without CUDA says."""

from __future__ import annotations

import re
import subprocess
import sys

import numpy as np
import pytest
import smartspec
import torch
from dlpack_for_tests import (
    BFLOAT16,
    CPU,
    CUDA_HOST,
    FLOAT8_E4M3FN,
    FLOAT8_E5M2,
    Exported,
    ExportedInC,
)
from smartspec.cuda import TreeAttention, TreeVerifier
from smartspec_core import cuda

no_device = pytest.mark.skipif(cuda.is_usable(), reason="there is a CUDA device")
FP8 = "float8_e4m3fn, float8_e5m2"


def ints(*shape, **options):
    return Exported(np.zeros(shape, np.int32), **options)


def longs(*shape, **options):
    return Exported(np.zeros(shape, np.int64), **options)


def floats(*shape, **options):
    return Exported(np.zeros(shape, np.float32), **options)


def bf16(*shape, **options):
    return Exported(np.zeros(shape, np.uint16), code=BFLOAT16, **options)


def memory(size, **options):
    return Exported(np.zeros(size, np.uint8), **options)


def cache(**changes):
    """4 pages of 16 tokens, 2 heads of 64."""
    given = {"k": bf16(4, 16, 2, 64), "v": bf16(4, 16, 2, 64), "stream": 0}
    return cuda.PagedKv(**(given | changes))


# How tensors are seen.


@pytest.mark.parametrize("dtype", ["float32", "float16", "int8", "uint8", "int32", "int64",
                                   "uint32", "uint64", "bool", "complex64"])  # fmt: skip
def test_numpy(dtype):
    array = np.zeros((3, 4), dtype)[:, 1:3]
    assert cuda.describe(tensor=array) == {
        "data": array.ctypes.data, "dtype": dtype, "device": "cpu", "shape": [3, 2],
        "strides": [4, 1], "read_only": False,
    }  # fmt: skip


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16", "float8_e4m3fn", "float8_e5m2",
                                   "int64", "uint8"])  # fmt: skip
def test_torch(dtype):
    tensor = torch.zeros(4, 6).to(getattr(torch, dtype)).t()[1:]
    assert cuda.describe(tensor=tensor) == {
        "data": tensor.data_ptr(), "dtype": dtype, "device": "cpu", "shape": [5, 4],
        "strides": [1, 6], "read_only": False,
    }  # fmt: skip


def test_read_only():
    array = np.zeros(3)
    array.flags.writeable = False
    assert cuda.describe(tensor=array)["read_only"]


def test_strides_of_single_elements_are_made_dense():
    tensor = torch.zeros(5).as_strided((1, 5, 1), (77, 1, 33))
    assert cuda.describe(tensor=tensor)["strides"] == [5, 1, 1]
    assert cuda.describe(tensor=np.zeros((2, 0, 3)))["shape"] == [2, 0, 3]
    assert cuda.describe(tensor=np.zeros(()))["shape"] == []


@pytest.mark.parametrize("versioned", [True, False])
def test_capsules_of_both_versions(versioned):
    array = np.zeros((2, 3), np.float32)
    tensor = Exported(array, versioned=versioned, device=(2, 1), byte_offset=4, null_strides=True)
    seen = cuda.describe(tensor=tensor, stream=0)
    assert seen["data"] == array.ctypes.data + 4
    assert (seen["device"], seen["strides"]) == ("cuda:1", [3, 1])
    assert tensor.deleted == 1
    streams = [call["stream"] for call in tensor.calls]
    assert streams == [1] * (1 if versioned else 2)  # the legacy default stream; None would wait
    assert ("max_version" in tensor.calls[-1]) == versioned


def test_stream_goes_to_the_producer():
    tensor, host = ints(2), ints(2, device=(CPU, 0))
    cuda.describe(tensor=tensor, stream=0x7F0012345678)
    cuda.describe(tensor=host, stream=0x7F0012345678)
    assert tensor.calls[0]["stream"] == 0x7F0012345678
    assert host.calls[0]["stream"] is None


def test_c_exchange():
    array = np.zeros((2, 3), np.float32)
    tensor = ExportedInC(array, device=(2, 1))
    ExportedInC.current_stream = 77
    assert cuda.describe(tensor=tensor, stream=77)["data"] == array.ctypes.data
    assert (tensor.deleted, tensor.calls) == (1, [])
    # The framework works on another stream: it is asked to order them.
    assert cuda.describe(tensor=tensor, stream=78)["device"] == "cuda:1"
    assert [call["stream"] for call in tensor.calls] == [78]
    assert tensor.deleted == 3
    host = ExportedInC(array, device=(CPU, 0))
    cuda.describe(tensor=host, stream=78)
    assert (host.deleted, host.calls) == (1, [])


def test_memory_is_kept_and_let_go():
    k, v = bf16(4, 16, 2, 64), bf16(4, 16, 2, 64)
    kv = cache(k=k, v=v)
    assert (k.deleted, v.deleted) == (0, 0)
    del kv
    assert (k.deleted, v.deleted) == (1, 1)
    with pytest.raises(ValueError, match="v has shape"):
        cache(k=k, v=bf16(4, 16, 2, 32))
    assert k.deleted == 2


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"version": (2, 0)}, "tensor has DLPack version 2; allowed: 0 and 1"),
        ({"flags": 2}, "tensor has a copy; allowed: tensors that can be exported as they are"),
    ],
)
def test_refused_capsules(options, words):
    tensor = ints(2, **options)
    with pytest.raises(ValueError, match=words):
        cuda.describe(tensor=tensor)
    # A capsule of an unknown version is left to its own destructor.
    assert tensor.deleted == (0 if "version" in options else 1)


def test_what_is_no_tensor():
    class Liar:
        def __dlpack_device__(self):
            return (1, 0)

        def __dlpack__(self, **_):
            return "no capsule"

    class Failing(Liar):
        def __dlpack__(self, **_):
            raise BufferError("not today")

    for thing in ([1, 2], 3, None, "text"):
        with pytest.raises(TypeError, match="tensor: must be a tensor with __dlpack__, got"):
            cuda.describe(tensor=thing)
    with pytest.raises(TypeError, match="gave no DLPack capsule"):
        cuda.describe(tensor=Liar())
    with pytest.raises(BufferError, match="not today"):
        cuda.describe(tensor=Failing())


# What is refused.


def test_paged_kv_layouts():
    kv = cache()
    assert (kv.dtype, kv.page_size, kv.num_kv_heads, kv.head_dim) == ("bfloat16", 16, 2, 64)
    kv = cache(k=bf16(4, 2, 16, 64), v=bf16(4, 2, 16, 64), layout="HND")
    assert (kv.page_size, kv.num_kv_heads) == (16, 2)
    # One tensor of both, as FlashInfer has it.
    both = np.zeros((4, 2, 16, 2, 64), np.float16)
    kv = cache(k=Exported(both[:, 0]), v=Exported(both[:, 1]))
    assert kv.dtype == "float16"


@pytest.mark.parametrize("code", [FLOAT8_E4M3FN, FLOAT8_E5M2])
def test_float8_caches(code):
    name = {FLOAT8_E4M3FN: "float8_e4m3fn", FLOAT8_E5M2: "float8_e5m2"}[code]
    k, v = (Exported(np.zeros((4, 16, 2, 64), np.uint8), code=code) for _ in range(2))
    scale = floats(2)
    assert cache(k=k, v=v, k_scale=scale, v_scale=scale).dtype == name
    k, v = (Exported(np.zeros((4, 16, 2, 64), np.uint8)) for _ in range(2))
    assert cache(k=k, v=v, kv_dtype=name).dtype == name
    with pytest.raises(ValueError, match=f"name what the bytes are with kv_dtype; allowed: {FP8}"):
        cache(k=k, v=v)
    with pytest.raises(ValueError, match="kv_dtype is int8, k has dtype uint8"):
        cache(k=k, v=v, kv_dtype="int8")
    with pytest.raises(ValueError, match="kv_dtype is 'fp8'; allowed: float32, bfloat16"):
        cache(k=k, v=v, kv_dtype="fp8")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"k": longs(4, 16, 2, 64)}, "k has dtype int64; allowed: float32, bfloat16, float16"),
        ({"k": bf16(4, 16, 128)}, "k has shape [4, 16, 128]; allowed: [*, *, *, *]"),
        ({"v": floats(4, 16, 2, 64)}, "v has dtype float32; allowed: bfloat16"),
        ({"v": bf16(4, 16, 2, 32)}, "v has shape [4, 16, 2, 32]; allowed: [4, 16, 2, 64]"),
        ({"layout": "nhd"}, "layout is 'nhd'; allowed: NHD, HND"),
        ({"k_scale": floats(3)}, "k_scale has shape [3]; allowed: [2]"),
        ({"v_scale": longs(2)}, "v_scale has dtype int64; allowed: float32"),
        ({"k": bf16(4, 16, 2, 64, flags=1)}, "k has read-only memory"),
        ({"v": bf16(4, 16, 2, 64, device=(2, 1))}, "v is on cuda:1; must be on cuda:0"),
        ({"v": torch.zeros(4, 16, 2, 64, dtype=torch.bfloat16)}, "v is on cpu; must be on cuda:0"),
        ({"v": bf16(4, 16, 2, 64, device=(14, 0))}, "v is on DLPack device type 14; must be on"),
    ],
)
def test_paged_kv_refuses(changes, words):
    with pytest.raises(ValueError, match=re.escape(words)):
        cache(**changes)


def test_paged_kv_refuses_strides():
    array = np.zeros((4, 16, 2, 128), np.uint16)
    with pytest.raises(ValueError, match=r"k has shape \[4, 16, 2, 64\] with strides "
                       r"\[4096, 256, 128, 2\]; allowed: a last stride of 1"):  # fmt: skip
        cache(k=Exported(array[..., ::2], code=BFLOAT16))
    with pytest.raises(ValueError, match=r"v has strides \[4096, 256, 128, 1\]; allowed: those of "
                       r"k, \[2048, 128, 64, 1\]"):  # fmt: skip
        cache(v=Exported(array[..., :64], code=BFLOAT16))
    broadcast = np.broadcast_to(np.zeros((1, 16, 2, 64), np.uint16), (4, 16, 2, 64))
    with pytest.raises(ValueError, match=r"strides \[0, 128, 64, 1\]"):
        cache(k=Exported(broadcast, code=BFLOAT16))


def test_cpu_tensors():
    k = torch.zeros(4, 16, 2, 64, dtype=torch.bfloat16)
    with pytest.raises(ValueError, match="k is on cpu; must be on a CUDA device"):
        cache(k=k, v=k)


def forest(**changes):
    given = {
        "row_offsets": ints(3), "context_lens": ints(2), "node_offsets": ints(3),
        "parents": ints(7), "block_table": ints(2, 5), "num_rows": 7, "stream": 0,
    }  # fmt: skip
    return cuda.Forest(**(given | changes))


def test_forest():
    forest()
    forest(num_causal=ints(2), block_table=Exported(np.zeros((2, 9), np.int32)[:, :5]))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"row_offsets": ints(2)}, "row_offsets has shape [2]; allowed: [3]"),
        ({"node_offsets": longs(3)}, "node_offsets has dtype int64; allowed: int32"),
        ({"num_causal": ints(3)}, "num_causal has shape [3]; allowed: [2]"),
        ({"block_table": ints(3, 5)}, "block_table has shape [3, 5]; allowed: [2, *]"),
        ({"parents": Exported(np.zeros(8, np.int32)[::2])}, "parents has shape [4] with strides"),
        ({"parents": np.zeros(7, np.int32)}, "parents is on cpu; must be on cuda:0"),
    ],
)
def test_forest_refuses(changes, words):
    with pytest.raises(ValueError, match=re.escape(words)):
        forest(**changes)


def append(**changes):
    given = {
        "kv": cache(), "k": bf16(5, 2, 64), "v": bf16(5, 2, 64), "slots": ints(5), "stream": 0,
    }  # fmt: skip
    cuda.append_kv(**(given | changes))


ROTATION = {"cos": floats(99, 32), "sin": floats(99, 32), "positions": ints(5)}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"k": bf16(5, 3, 64)}, "k has shape [5, 3, 64]; allowed: [*, 2, 64]"),
        ({"v": floats(5, 2, 64)}, "v has dtype float32; allowed: bfloat16"),
        ({"slots": ints(4)}, "slots has shape [4]; allowed: [5]"),
        ({"q": bf16(5, 8, 64, flags=1)}, "q has read-only memory"),
        ({"q": bf16(5, 8, 32)}, "q has shape [5, 8, 32]; allowed: [5, *, 64]"),
        ({"cos": floats(9, 32)}, "cos, sin and positions: all of them, or none"),
        (ROTATION | {"sin": floats(98, 32)}, "sin has shape [98, 32]; allowed: [99, 32]"),
        (ROTATION | {"cos": floats(99, 64)}, "cos has shape [99, 64]; allowed: [*, 32]"),
        ({"slots": ints(5, device=(2, 3))}, "slots is on cuda:3; must be on cuda:0"),
    ],
)
def test_append_kv_refuses(changes, words):
    with pytest.raises(ValueError, match=re.escape(words)):
        append(**changes)


def test_moves_refuse():
    layers = [cache(), cache()]
    with pytest.raises(ValueError, match=r"destinations has shape \[3\]; allowed: \[2\]"):
        cuda.move_kv(layers=layers, sources=ints(2), destinations=ints(3), stream=0)
    with pytest.raises(ValueError, match="sources is on cpu; must be on cuda:0"):
        cuda.copy_pages(
            layers=layers, sources=np.zeros(1, np.int32), destinations=ints(1), stream=0
        )
    page = 2 * 2 * 16 * 2 * 64 * 2  # two layers, K and V, tokens, heads, dim, bytes
    host = {"layers": layers, "pages": ints(3), "to_host": True, "stream": 0}
    with pytest.raises(ValueError, match=f"host has 5 bytes; allowed: at least {3 * page}"):
        cuda.swap_pages(**host, host=memory(5, device=(CUDA_HOST, 0)))
    with pytest.raises(ValueError, match="host is on cuda:0; must be page-locked memory"):
        cuda.swap_pages(**host, host=memory(3 * page))
    with pytest.raises(ValueError, match="host has read-only memory"):
        cuda.swap_pages(**host, host=memory(3 * page, device=(CUDA_HOST, 0), flags=1))


def verify(**changes):
    """2 sequences, 5 nodes, 7 rows of logits over 100 tokens."""
    given = {
        "logits": bf16(7, 100), "logits_offsets": ints(2), "node_offsets": ints(3),
        "node_tokens": ints(5), "parents": ints(5), "seeds": longs(2), "positions": longs(2),
        "num_accepted": ints(2), "status": ints(2), "path": ints(2, 6), "tokens": ints(2, 6),
        "workspace": memory(64), "stream": 0,
    }  # fmt: skip
    given |= changes
    cuda.verify(**{name: value for name, value in given.items() if value is not ...})


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"logits": longs(7, 100)}, "logits has dtype int64; allowed: float32, bfloat16, float16"),
        ({"parents": ints(4)}, "parents has shape [4]; allowed: [5]"),
        ({"seeds": ints(2)}, "seeds has dtype int32; allowed: int64, uint64"),
        ({"top_p": floats(3)}, "top_p has shape [3]; allowed: [2]"),
        ({"top_k": floats(2)}, "top_k has dtype float32; allowed: int32"),
        ({"masks": ints(9, 3)}, "masks has shape [9, 3]; allowed: [*, 4]"),
        ({"mask_rows": ints(5)}, "mask_rows has shape [5]; allowed: [7]"),
        ({"draft_probs": floats(5, 99)}, "draft_probs has shape [5, 99]; allowed: [*, 100]"),
        ({"count_tokens": ints(3), "output_counts": ints(2)}, "output_counts has shape [2]"),
        ({"tokens": ints(2, 5)}, "tokens has shape [2, 5]; allowed: [2, 6]"),
        ({"status": ints(2, flags=1)}, "status has read-only memory"),
        ({"workspace": ints(64)}, "workspace has dtype int32; allowed: uint8"),
        ({"rule": "typical"}, "rule is 'typical'; allowed: target, token, block, traversal"),
        ({"logits": torch.zeros(7, 100)}, "logits is on cpu; must be on cuda:0"),
    ],
)
def test_verify_refuses(changes, words):
    with pytest.raises(ValueError, match=re.escape(words)):
        verify(**changes)


def test_verify_knows_its_arguments():
    with pytest.raises(TypeError, match="verify: missing argument seeds"):
        verify(seeds=...)
    with pytest.raises(TypeError, match="verify: missing argument tokens"):
        verify(tokens=None)
    with pytest.raises(TypeError, match="verify: no argument is called top_q"):
        verify(top_q=floats(2))


# Without a device.

OPTIONS = {"num_heads": 8, "num_kv_heads": 2, "head_dim": 64}


def test_options():
    options = cuda.AttentionOptions(**OPTIONS, kv_dtype="int8", batch_invariant=True)
    assert (options.num_heads, options.num_kv_heads, options.head_dim) == (8, 2, 64)
    assert (options.kv_dtype, options.batch_invariant) == ("int8", True)
    with pytest.raises(ValueError, match="kv_dtype is 'half'; allowed"):
        cuda.AttentionOptions(**OPTIONS, kv_dtype="half")


@no_device
def test_every_operation_says_why_it_cannot_run():
    assert not cuda.is_usable()
    reason = cuda.unusable_reason()
    assert reason
    if not cuda.build_info()["has_cuda"]:
        assert reason == "smartspec was built without CUDA"
    options = cuda.AttentionOptions(**OPTIONS)
    sizes = {"max_sequences": 2, "max_rows": 7, "max_nodes": 7}
    layers = [cache()]
    page = 2 * 16 * 2 * 64 * 2
    calls = [
        lambda: cuda.prepare_forest(
            forest=forest(), options=options, workspace=memory(1 << 20), stream=0
        ),
        lambda: append(q=bf16(5, 8, 64), **ROTATION),
        lambda: cuda.move_kv(
            layers=layers, sources=ints(2), destinations=ints(2), group_offsets=ints(2), stream=0
        ),
        lambda: cuda.copy_pages(layers=layers, sources=ints(2), destinations=ints(2), stream=0),
        lambda: cuda.swap_pages(
            layers=layers, pages=ints(1), host=memory(page, device=(CUDA_HOST, 0)), to_host=False,
            stream=0,
        ),
        verify,
        lambda: cuda.attention_workspace_bytes(options=options, **sizes),
        lambda: TreeAttention(**OPTIONS, **sizes),
        lambda: TreeVerifier(vocab_size=100, max_sequences=2, max_nodes=7),
    ]  # fmt: skip
    for call in calls:
        with pytest.raises(smartspec.DeviceError, match=re.escape(reason)):
            call()


@no_device
def test_engine_without_device(tiny_path, tiny):
    with pytest.raises(smartspec.DeviceError, match=re.escape(cuda.unusable_reason())):
        smartspec.LLM(tiny_path, device="cuda")
    params = smartspec.SamplingParams(temperature=0.0, max_tokens=4, ignore_eos=True)
    (output,) = tiny.generate([[1, 2, 3]], params, use_tqdm=False)
    assert len(output.outputs[0].token_ids) == 4


def test_import_brings_no_framework():
    script = "import smartspec.cuda, sys; assert not {'torch', 'cupy', 'jax'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", script], check=True)
