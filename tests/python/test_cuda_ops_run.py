# SPDX-FileCopyrightText: The SmartSpec authors
# SPDX-License-Identifier: Apache-2.0
"""The CUDA operations through their Python entry points, against double precision and the CPU: on
the device where there is one, and on the emulated device of tests/cuda, whose module lies in the
build that smartspec_core comes from. What the kernels compute is tested there in depth; here it is
that every argument arrives where it belongs."""

from __future__ import annotations

import importlib.util
import math
from pathlib import Path

import numpy as np
import pytest
import smartspec.cuda
import smartspec_core as core
import torch
from dlpack_for_tests import BFLOAT16, CUDA_HOST, FLOAT8_E4M3FN, FLOAT8_E5M2, Exported

_WORDS = {1: np.uint8, 2: np.int16, 4: np.float32, 8: np.int64}
_CODES = {
    torch.bfloat16: BFLOAT16, torch.float8_e4m3fn: FLOAT8_E4M3FN, torch.float8_e5m2: FLOAT8_E5M2,
    torch.float16: 2, torch.int8: 0, torch.int32: 0,
}  # fmt: skip


def emulated_module():
    build = Path(core._core.__file__).resolve().parents[2]
    for path in (build / "tests" / "cuda").glob("cuda_ops_emulated*.so"):
        spec = importlib.util.spec_from_file_location("cuda_ops_emulated", path)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module.cuda
    return None


class Emulated:
    """Its memory is the host's: a tensor and what is exported of it are the same bytes."""

    ops = emulated_module()

    def put(self, tensor, device=(2, 0)):
        word = _WORDS[tensor.element_size()]
        viewed = tensor.view(torch.from_numpy(np.empty(0, word)).dtype).numpy()
        out = Exported(viewed, code=_CODES.get(tensor.dtype), device=device)
        out.tensor = tensor
        return out

    def pinned(self, tensor):
        return self.put(tensor, (CUDA_HOST, 0))

    def read(self, exported):
        return exported.tensor

    def workspace(self, size):
        memory = torch.zeros(size + 256, dtype=torch.uint8)
        start = -memory.data_ptr() % 256
        return self.put(memory[start : start + size])


class Real:
    ops = core.cuda

    def put(self, tensor):
        return tensor.cuda()

    def pinned(self, tensor):
        return tensor.pin_memory()

    def read(self, tensor):
        torch.cuda.synchronize()
        return tensor.cpu()

    def workspace(self, size):
        return torch.zeros(size, dtype=torch.uint8, device="cuda")


@pytest.fixture(params=["emulated", "real"])
def device(request, monkeypatch):
    if request.param == "real":
        if not core.cuda.is_usable():
            pytest.skip(f"no device to run on: {core.cuda.unusable_reason()}")
        return Real()
    if Emulated.ops is None:
        pytest.skip("this build has no emulated module: it comes with SMARTSPEC_TESTS")
    monkeypatch.setattr(smartspec.cuda, "ops", Emulated.ops)
    monkeypatch.setattr(smartspec.cuda, "is_usable", Emulated.ops.is_usable)
    return Emulated()


def ints(*values):
    return torch.tensor(values, dtype=torch.int32)


def normal(random, *shape):
    return torch.from_numpy(random.standard_normal(shape, dtype=np.float32))


class Scene:
    """3 sequences: causal rows and trees over a paged cache of 2 heads of 64, pages of 16."""

    def __init__(self, seed, kv_dtype=torch.bfloat16, layout="NHD", causal=True):
        random = np.random.default_rng(seed)
        self.contexts = [int(x) for x in random.integers(0, 40, 3)]
        self.causal = [int(x) for x in random.integers(0, 3, 3)] if causal else [0, 0, 0]
        sizes = [int(x) for x in random.integers(1, 9, 3)]
        self.parents = [[int(random.integers(-1, n)) if n else -1 for n in range(size)]
                        for size in sizes]  # fmt: skip
        self.num_rows = sum(self.causal) + sum(sizes)
        self.pages = random.permutation(12).reshape(3, 4)
        self.scales = random.uniform(0.5, 2.0, (2, 2)).astype(np.float32)
        shape = (12, 16, 2, 64) if layout == "NHD" else (12, 2, 16, 64)
        if kv_dtype == torch.int8:
            both = torch.from_numpy(random.integers(-127, 128, (2, *shape), dtype=np.int8))
            self.scales /= 64
        else:
            both = normal(random, 2, *shape).to(kv_dtype)
        self.k, self.v = both
        self.layout = layout
        self.q = normal(random, self.num_rows, 4, 64)

    def offsets(self, counts):
        return ints(0, *np.cumsum(counts))

    def forest(self, device):
        nodes = [len(p) for p in self.parents]
        rows = [c + n for c, n in zip(self.causal, nodes, strict=True)]
        put = device.put
        return {
            "row_offsets": put(self.offsets(rows)), "node_offsets": put(self.offsets(nodes)),
            "context_lens": put(ints(*self.contexts)), "num_causal": put(ints(*self.causal)),
            "parents": put(ints(*(p for parents in self.parents for p in parents))),
            "block_table": put(torch.from_numpy(self.pages.astype(np.int32))),
            "num_rows": self.num_rows,
        }  # fmt: skip

    def cache(self, device, **options):
        k, v = device.put(self.k), device.put(self.v)
        return device.ops.PagedKv(k=k, v=v, layout=self.layout, stream=0, **options)

    def visible(self):
        """(sequence, key indices, position) of each row."""
        for s, parents in enumerate(self.parents):
            base = self.contexts[s] + self.causal[s]
            for c in range(self.causal[s]):
                yield s, list(range(self.contexts[s] + c + 1)), self.contexts[s] + c
            for n in range(len(parents)):
                path, node = [], n
                while node >= 0:
                    path.append(base + node)
                    node = parents[node]
                yield s, list(range(base)) + path[::-1], base + len(path) - 1

    def expected(self, q, scale=0.125, soft_cap=0.0, scaled=False, window=0):
        outs, sums = [], []
        for row, (s, keys, position) in enumerate(self.visible()):
            # Keys are listed in order of position, from 0 up to the row's own.
            assert len(keys) == position + 1
            seen = keys[max(0, position - window + 1) :] if window else keys
            pages, tokens = self.pages[s][np.array(seen) // 16], np.array(seen) % 16
            out, lse = [], []
            for head in range(4):
                kv_head = head // 2
                index = (pages, tokens, kv_head) if self.layout == "NHD" else (
                    pages, kv_head, tokens)  # fmt: skip
                k, v = self.k.double()[index], self.v.double()[index]
                if scaled:
                    k, v = k * float(self.scales[0, kv_head]), v * float(self.scales[1, kv_head])
                scores = k @ q[row, head].double() * scale
                if soft_cap:
                    scores = soft_cap * torch.tanh(scores / soft_cap)
                out.append(scores.softmax(0) @ v)
                lse.append(torch.logsumexp(scores, 0))
            outs.append(torch.stack(out))
            sums.append(torch.stack(lse))
        return torch.stack(outs), torch.stack(sums)


def options_of(device, scene, **changes):
    name = str(scene.k.dtype).removeprefix("torch.")
    given = {"num_heads": 4, "num_kv_heads": 2, "head_dim": 64, "kv_dtype": name}
    return device.ops.AttentionOptions(**(given | changes))


def prepared(device, scene, options):
    size = device.ops.attention_workspace_bytes(
        options=options, max_sequences=3, max_rows=64, max_nodes=64
    )
    forest = device.ops.Forest(**scene.forest(device), stream=0)
    return device.ops.prepare_forest(
        forest=forest, options=options, workspace=device.workspace(size), stream=0
    )


TOLERANCE = {torch.float32: 2e-5, torch.bfloat16: 2e-2, torch.float16: 4e-3}


@pytest.mark.parametrize(
    ("dtype", "kv_dtype", "layout", "extra"),
    [
        (torch.bfloat16, torch.bfloat16, "NHD", {}),
        (torch.float16, torch.float16, "HND", {"scale": 0.3}),
        (torch.float32, torch.float32, "NHD", {"soft_cap": 2.0}),
        (torch.bfloat16, torch.float8_e4m3fn, "HND", {}),
        (torch.bfloat16, torch.float8_e5m2, "NHD", {}),
        (torch.float16, torch.int8, "NHD", {}),
        (torch.float32, torch.float32, "NHD", {"sliding_window": 7}),
    ],
)
def test_tree_attention(device, dtype, kv_dtype, layout, extra):
    scene = Scene(5, kv_dtype, layout)
    q = scene.q.to(dtype)
    scaled = kv_dtype.itemsize == 1
    named = {}
    if scaled:
        k_scale, v_scale = (device.put(torch.from_numpy(s)) for s in scene.scales)
        named = {"k_scale": k_scale, "v_scale": v_scale}
    out, lse = device.put(torch.zeros_like(q)), device.put(torch.zeros(scene.num_rows, 4))
    device.ops.tree_attention(
        q=device.put(q), out=out, lse=lse, kv=scene.cache(device, **named),
        forest=prepared(device, scene, options_of(device, scene)), stream=0, **extra,
    )  # fmt: skip
    oracle = {"sliding_window": "window"}
    right, sums = scene.expected(
        q, scaled=scaled, **{oracle.get(name, name): value for name, value in extra.items()}
    )
    tolerance = TOLERANCE[dtype] * max(1.0, float(right.abs().max()))
    assert float((device.read(out).double() - right).abs().max()) < tolerance
    assert float((device.read(lse).double() - sums).abs().max()) < 2e-2


def test_attention_object(device):
    first, second = Scene(1), Scene(2, causal=False)
    shape = {"num_heads": 4, "num_kv_heads": 2, "head_dim": 64}
    sizes = {"max_sequences": 3, "max_rows": 64, "max_nodes": 64}
    needed = device.ops.attention_workspace_bytes(
        options=device.ops.AttentionOptions(**shape), **sizes
    )
    workspace = device.workspace(needed)
    attention = smartspec.cuda.TreeAttention(**shape, **sizes, workspace=workspace)
    assert attention.workspace_bytes == needed
    with pytest.raises(ValueError, match=r"plan\(\) comes before run\(\)"):
        attention.run(device.put(first.q.bfloat16()), first.cache(device), stream=0)
    for scene in (first, second):  # one workspace, one pass after another
        attention.plan(**scene.forest(device), stream=0)
        q = scene.q.bfloat16()
        for _ in range(2):  # two layers
            out = device.put(torch.zeros_like(q))
            assert attention.run(device.put(q), scene.cache(device), out=out, stream=0) is out
            right, _ = scene.expected(q)
            assert float((device.read(out).double() - right).abs().max()) < 2e-2


@pytest.mark.parametrize("layout", ["NHD", "HND"])
def test_append_kv(device, layout):
    random = np.random.default_rng(3)
    scene = Scene(3, torch.float32, layout)
    slots = ints(17, 3, -1, 190)
    positions = ints(4, 0, 9, 7)
    q, k, v = normal(random, 4, 4, 64), normal(random, 4, 2, 64), normal(random, 4, 2, 64)
    angles = random.uniform(0, 6, (10, 32)).astype(np.float32)
    cos, sin = torch.from_numpy(np.cos(angles)), torch.from_numpy(np.sin(angles))

    def rotated(x):
        a, b = x[..., :32].double(), x[..., 32:].double()
        c, s = (t.double()[positions.long()][:, None] for t in (cos, sin))
        return torch.cat([a * c - b * s, b * c + a * s], -1)

    right_q, right_k = rotated(q), rotated(k)
    right_q[2] = q[2]  # its slot is none
    queries = device.put(q.clone())
    keys, values = device.put(scene.k), device.put(scene.v)
    cache = device.ops.PagedKv(k=keys, v=values, layout=layout, stream=0)
    device.ops.append_kv(
        kv=cache, q=queries, k=device.put(k), v=device.put(v), slots=device.put(slots),
        cos=device.put(cos), sin=device.put(sin), positions=device.put(positions), stream=0,
    )  # fmt: skip
    assert torch.allclose(device.read(queries).double(), right_q, atol=1e-5)
    for memory, right in ((keys, right_k), (values, v.double())):
        stored = device.read(memory)
        for row in (0, 1, 3):
            page, token = divmod(int(slots[row]), 16)
            got = stored[page, token] if layout == "NHD" else stored[page, :, token]
            assert torch.allclose(got.double(), right[row], atol=1e-5)


def layers_of(device, count=2):
    tensors = [device.put(t) for i in range(count) for t in (Scene(i).k, Scene(i).v)]
    caches = [device.ops.PagedKv(k=tensors[2 * i], v=tensors[2 * i + 1], stream=0)
              for i in range(count)]  # fmt: skip
    before = [device.read(t).clone() for t in tensors]
    return tensors, caches, before


def test_move_kv(device):
    tensors, caches, before = layers_of(device)
    device.ops.move_kv(
        layers=caches, sources=device.put(ints(5, 9, 40)), destinations=device.put(ints(4, 5, 41)),
        group_offsets=device.put(ints(0, 2, 3)), stream=0,
    )  # fmt: skip
    for tensor, old in zip(tensors, before, strict=True):
        slots = old.view(192, 2, 64).clone()
        slots[4], slots[5], slots[41] = old.view(192, 2, 64)[[5, 9, 40]]
        assert torch.equal(device.read(tensor).view(192, 2, 64), slots)


def test_pages(device):
    tensors, caches, before = layers_of(device)
    device.ops.copy_pages(
        layers=caches, sources=device.put(ints(1, 2)), destinations=device.put(ints(7, 3)), stream=0
    )
    for tensor, old in zip(tensors, before, strict=True):
        old[7], old[3] = old[1].clone(), old[2].clone()
        assert torch.equal(device.read(tensor), old)
    page = 16 * 2 * 64
    host = device.pinned(torch.zeros(2 * 2 * 3 * page * 2, dtype=torch.uint8))
    out, back = device.put(ints(11, 0, 5)), device.put(ints(4, 6, 8))
    device.ops.swap_pages(layers=caches, pages=out, host=host, to_host=True, stream=0)
    swapped = device.read(host).view(torch.bfloat16).view(2, 3, 2, 16, 2, 64)
    for i, old in enumerate(before):
        assert torch.equal(swapped[i // 2, :, i % 2], old[[11, 0, 5]])
    device.ops.swap_pages(layers=caches, pages=back, host=host, to_host=False, stream=0)
    for tensor, old in zip(tensors, before, strict=True):
        old[[4, 6, 8]] = old[[11, 0, 5]]
        assert torch.equal(device.read(tensor), old)


@pytest.mark.skipif(Emulated.ops is None, reason="the emulated module is not built")
def test_memory_and_stream_from_the_framework(monkeypatch):
    monkeypatch.setattr(smartspec.cuda, "ops", Emulated.ops)
    monkeypatch.setattr(smartspec.cuda, "is_usable", Emulated.ops.is_usable)
    sizes = {"max_sequences": 2, "max_nodes": 4}

    def plan(**forest):
        attention = smartspec.cuda.TreeAttention(
            num_heads=4, num_kv_heads=2, head_dim=64, max_rows=4, **sizes
        )
        attention.plan(**forest)

    offsets = {"row_offsets": ints(0, 1), "node_offsets": ints(0, 1), "context_lens": ints(5)}
    forest = offsets | {"parents": ints(-1), "block_table": ints(0)[None], "num_rows": 1}
    with pytest.raises(ValueError, match="context_lens is on cpu; must be on a CUDA device"):
        plan(**forest)
    arrays = {name: t.numpy() if name != "num_rows" else t for name, t in forest.items()}
    with pytest.raises(ValueError, match="workspace: must be given for tensors of numpy"):
        plan(**arrays)
    exported = {name: Emulated().put(t) if name != "num_rows" else t for name, t in forest.items()}
    with pytest.raises(ValueError, match="stream: must be given for tensors of dlpack_for_tests"):
        plan(**exported)
    verifier = smartspec.cuda.TreeVerifier(vocab_size=VOCAB, **sizes)
    nodes = {"node_offsets": ints(0, 1), "node_tokens": ints(3), "parents": ints(-1)}
    seeds = {"seeds": torch.tensor([7]), "positions": torch.tensor([5])}
    with pytest.raises(ValueError, match="logits is on cpu; must be on a CUDA device"):
        verifier.verify(
            torch.zeros(2, VOCAB), logits_offsets=ints(0), **nodes, **seeds, logprobs=True
        )


VOCAB = 70


class Pass:
    """4 requests over 70 tokens: their trees, parameters and the CPU's verdict."""

    def __init__(self, seed, dtype):
        random = np.random.default_rng(seed)
        self.trees, self.params, self.prompts, self.seeds = [], [], [], []
        rows = []
        for _ in range(4):
            tree = core.TokenTree()
            size = int(random.integers(1, 7))
            for n in range(size):
                tree.add(int(random.integers(VOCAB)), int(random.integers(-1, n)) if n else -1)
            logits = 2 * random.standard_normal((size + 1, VOCAB)).astype(np.float32)
            for n, (token, parent) in enumerate(zip(tree.tokens, tree.parents, strict=True)):
                if n == 0 or random.random() < 0.7:
                    logits[parent + 1, token] += 9
            params = core.SamplingParams()
            params.temperature = float(random.choice([0.0, 0.7, 1.3]))
            params.top_k = int(random.choice([0, 5, 30]))
            params.top_p = float(random.choice([1.0, 0.9]))
            params.min_p = float(random.choice([0.0, 0.02]))
            params.repetition_penalty = float(random.choice([1.0, 1.4]))
            params.frequency_penalty = float(random.choice([0.0, 0.6]))
            params.presence_penalty = float(random.choice([0.0, 0.5]))
            params.max_tokens = 100
            params.ignore_eos = True
            self.trees.append(tree)
            self.params.append(params)
            self.prompts.append([int(t) for t in random.integers(0, VOCAB, 5)])
            self.seeds.append(int(random.integers(1 << 62)))
            rows.append(torch.from_numpy(logits).to(dtype))
        self.masks = random.integers(0, 1 << 32, (2, 3), dtype=np.uint32)
        self.masks |= random.integers(0, 1 << 32, (2, 3), dtype=np.uint32)
        self.logits = torch.cat(rows)
        self.mask_rows = random.integers(-1, 2, len(self.logits)).astype(np.int32)

    def arguments(self, device):
        sizes = [len(tree) for tree in self.trees]
        counted = [sorted(set(prompt)) for prompt in self.prompts]
        names = ["temperature", "top_p", "min_p", "repetition_penalty", "frequency_penalty",
                 "presence_penalty"]  # fmt: skip
        floats = {
            name: torch.tensor([getattr(p, name) for p in self.params], dtype=torch.float32)
            for name in names
        }
        given = {
            "logits_offsets": ints(*np.cumsum([0] + [s + 1 for s in sizes[:-1]])),
            "node_offsets": ints(0, *np.cumsum(sizes)),
            "node_tokens": ints(*(t for tree in self.trees for t in tree.tokens)),
            "parents": ints(*(p for tree in self.trees for p in tree.parents)),
            "seeds": torch.tensor(self.seeds),
            "positions": torch.tensor([len(prompt) for prompt in self.prompts]),
            "top_k": ints(*(p.top_k for p in self.params)),
            "count_offsets": ints(0, *np.cumsum([len(c) for c in counted])),
            "count_tokens": ints(*(t for c in counted for t in c)),
            "output_counts": ints(*(0 for c in counted for _ in c)),
            "masks": torch.from_numpy(self.masks.view(np.int32)),
            "mask_rows": torch.from_numpy(self.mask_rows),
        }
        return {name: device.put(tensor) for name, tensor in (floats | given).items()}

    def expected(self):
        """(path, tokens, logprobs) of each request."""
        at = 0
        for tree, params, prompt, seed in zip(
            self.trees, self.params, self.prompts, self.seeds, strict=True
        ):
            logits = self.logits[at : at + len(tree) + 1].float().numpy().copy()
            raw = logits.copy()
            for row in range(len(logits)):
                mask = self.mask_rows[at + row]
                if mask >= 0:
                    bits = np.unpackbits(self.masks[mask].view(np.uint8), bitorder="little")
                    logits[row, bits[:VOCAB] == 0] = -np.inf
            at += len(tree) + 1
            found = core.verify_tree(tree, logits, core.Sampler(params, seed, prompt, VOCAB))
            rows = [-1, *found.path]
            logprobs = [
                raw[row + 1, token] - np.logaddexp.reduce(raw[row + 1].astype(np.float64))
                for row, token in zip(rows, found.tokens, strict=True)
            ]
            yield found.path, found.tokens, logprobs


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_verify(device, dtype):
    for seed in range(10):
        case = Pass(seed, dtype)
        size = {"max_sequences": 4, "max_nodes": 32, "vocab_size": VOCAB}
        needed = device.ops.verify_workspace_bytes(rule="target", **size)
        verifier = smartspec.cuda.TreeVerifier(**size, workspace=device.workspace(needed))
        results = {name: torch.full((4,), -7, dtype=torch.int32)
                   for name in ("num_accepted", "status")}  # fmt: skip
        results |= {name: torch.full((4, 9), -7, dtype=torch.int32) for name in ("path", "tokens")}
        results["logprobs"] = torch.zeros(4, 9)
        out = smartspec.cuda.Verified(**{n: device.put(t) for n, t in results.items()})
        verifier.verify(device.put(case.logits), **case.arguments(device), out=out, stream=0)
        num_accepted, path, tokens, logprobs, status = (
            device.read(getattr(out, name)).tolist()
            for name in ("num_accepted", "path", "tokens", "logprobs", "status")
        )
        assert status == [0] * 4
        for s, (right_path, right_tokens, right_logprobs) in enumerate(case.expected()):
            count = num_accepted[s]
            assert (path[s][:count], tokens[s][: count + 1]) == (right_path, right_tokens)
            assert logprobs[s][: count + 1] == pytest.approx(right_logprobs, abs=1e-4)
            assert path[s][count:] == [-7] * (9 - count)


def test_wrong_values_are_refused_before_the_launch(device):
    scene = Scene(4)
    with pytest.raises(ValueError, match="num_heads"):
        device.ops.attention_workspace_bytes(
            options=options_of(device, scene, num_heads=5), max_sequences=1, max_rows=1, max_nodes=1
        )
    forest = prepared(device, scene, options_of(device, scene))
    q = device.put(scene.q.bfloat16()[:-1])
    with pytest.raises(ValueError, match=r"q has shape \["):
        device.ops.tree_attention(q=q, out=q, kv=scene.cache(device), forest=forest, stream=0)
    q = device.put(scene.q.bfloat16())
    with pytest.raises(ValueError, match="sliding_window"):
        device.ops.tree_attention(
            q=q, out=q, kv=scene.cache(device), forest=forest, sliding_window=-1, stream=0
        )
    assert math.isfinite(float(device.read(q).float().sum()))
