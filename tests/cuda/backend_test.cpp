// SPDX-FileCopyrightText: The SmartSpec authors
// SPDX-License-Identifier: Apache-2.0
// Every verb of the CUDA backend, on the emulated device, against the CPU backend; and what a user
// sees when something is wrong.
#include <array>
#include <cstring>
#include <string>

#include "backend_scene.hpp"
#include "emulation/memory.hpp"
#include "smartspec/cuda_ops.hpp"
#include "smartspec/error.hpp"

namespace smartspec {
namespace {

using testing::close;
using testing::DeviceArray;
using testing::Random;

/// Runs `test(backend)` on both and compares what it returns.
class BackendTest : public ::testing::Test {
 protected:
  template <class Test>
  void compare(double tolerance, Test test) {
    const std::vector<float> right = test(*cpu_);
    ASSERT_FALSE(right.empty());
    EXPECT_TRUE(close(test(*cuda_), right, tolerance));
  }

  std::unique_ptr<Backend> cpu_ = make_cpu_backend(1);
  std::unique_ptr<Backend> cuda_ = cuda::make_cuda_backend({});
};

TEST_F(BackendTest, Describes) {
  EXPECT_EQ(cuda_->device(), Device::kCuda);
  EXPECT_EQ(cuda_->isa_name(), "sm_90");
  EXPECT_EQ(cuda_->num_threads(), 1);
  EXPECT_FALSE(cuda_->is_host_visible());
  EXPECT_TRUE(cuda_available());
  EXPECT_TRUE(cuda::build_info().has_cuda);
}

TEST_F(BackendTest, MemoryIsZeroAndGoesThereAndBack) {
  // More than the staging ring holds, and many small ones: the ring goes round.
  for (const std::size_t size : {std::size_t{3}, std::size_t{1} << 10, std::size_t{5} << 20}) {
    const Buffer buffer = cuda_->allocate(size);
    std::vector<unsigned char> bytes(size, 1);
    cuda_->download(bytes.data(), buffer.data(), size);
    EXPECT_EQ(std::ranges::count(bytes, 0), static_cast<std::ptrdiff_t>(size));
    for (std::size_t round = 0; round < 3; ++round) {
      for (std::size_t i = 0; i < size; ++i) {
        bytes[i] = static_cast<unsigned char>(i * 7 + round);
      }
      cuda_->upload(buffer.data(), bytes.data(), size);
      std::vector<unsigned char> back(size);
      cuda_->download(back.data(), buffer.data(), size);
      EXPECT_EQ(back, bytes);
    }
  }
  EXPECT_EQ(cuda_->allocate(0).data(), nullptr);
  const Buffer host = cuda_->allocate_host(100);
  std::memset(host.data(), 1, host.size());
}

TEST_F(BackendTest, Embed) {
  Random random(1);
  const auto table = random.normals(40 * 20);
  const auto narrow = testing::bf16_of(table);
  const auto tokens = random.integers(9, 40);
  for (const DType dtype : {DType::kFloat32, DType::kBFloat16}) {
    compare(0.0, [&](Backend& b) {
      const bool bf16 = dtype == DType::kBFloat16;
      const DeviceArray<float> wide(b, table);
      const DeviceArray<std::uint16_t> half(b, narrow);
      const DeviceArray<std::int32_t> ids(b, tokens);
      const DeviceArray<float> out(b, 9 * 20);
      b.embed({.tokens = ids.data(),
               .table = bf16 ? static_cast<const void*>(half.data()) : wide.data(),
               .table_dtype = dtype,
               .out = out.data(),
               .num_rows = 9,
               .hidden = 20});
      return out.read();
    });
  }
  EXPECT_THROW(cuda_->embed({.table_dtype = DType::kInt32}), std::invalid_argument);
}

TEST_F(BackendTest, RmsNormInPlaceWithStride) {
  Random random(2);
  const auto rows = random.normals(7 * 50);
  const auto weight = random.normals(37);
  compare(1e-5, [&](Backend& b) {
    const DeviceArray<float> data(b, rows);
    const DeviceArray<float> w(b, weight);
    b.rms_norm({.in = data.data(),
                .weight = w.data(),
                .out = data.data(),
                .num_rows = 7,
                .dim = 37,
                .in_stride = 50,
                .out_stride = 50,
                .eps = 1e-5F});
    return data.read();
  });
}

TEST_F(BackendTest, SwigluAndGather) {
  Random random(3);
  const auto gate_up = random.normals(6 * 2 * 29);
  compare(1e-5, [&](Backend& b) {
    const DeviceArray<float> in(b, gate_up);
    const DeviceArray<float> out(b, 6 * 29);
    b.swiglu({.gate_up = in.data(), .out = out.data(), .num_rows = 6, .dim = 29});
    return out.read();
  });
  compare(0.0, [&](Backend& b) {
    const DeviceArray<float> in(b, gate_up);
    const DeviceArray<std::int32_t> rows(b, {5, 0, 5, 2});
    const DeviceArray<float> out(b, 4 * 58);
    b.gather_rows(
        {.in = in.data(), .rows = rows.data(), .out = out.data(), .num_rows = 4, .dim = 58});
    return out.read();
  });
}

struct LinearCase {
  DType dtype;
  DType stored;
  bool bias;
  bool accumulate;
  std::int32_t rows;
};

TEST_F(BackendTest, Linear) {
  constexpr std::int32_t kIn = 44;
  constexpr std::array<std::int64_t, 2> kOut = {21, 30};
  Random random(4);
  const auto first = random.normals(kOut[0] * kIn);
  const auto second = random.normals(kOut[1] * kIn);
  const auto in = random.normals(11 * (kIn + 3));
  const auto old = random.normals(11 * 60);
  const auto bias = random.normals(51);
  for (const LinearCase& c :
       std::initializer_list<LinearCase>{{DType::kFloat32, DType::kFloat32, true, false, 1},
                                         {DType::kFloat32, DType::kBFloat16, false, true, 11},
                                         {DType::kBFloat16, DType::kFloat32, true, true, 5},
                                         {DType::kBFloat16, DType::kBFloat16, false, false, 11},
                                         {DType::kBFloat16, DType::kBFloat16, true, true, 0}}) {
    SCOPED_TRACE(std::string(name_of(c.dtype)) + " rows " + std::to_string(c.rows));
    compare(2e-5, [&](Backend& b) {
      const auto halves = std::array{testing::bf16_of(first), testing::bf16_of(second)};
      const bool bf16 = c.stored == DType::kBFloat16;
      const std::array<TensorView, 2> parts = {
          testing::matrix(bf16 ? static_cast<const void*>(halves[0].data()) : first.data(),
                          c.stored, kOut[0], kIn),
          testing::matrix(bf16 ? static_cast<const void*>(halves[1].data()) : second.data(),
                          c.stored, kOut[1], kIn)};
      const PackedLinear weight = b.pack_linear(parts, c.dtype);
      EXPECT_EQ(weight.in_features, kIn);
      EXPECT_EQ(weight.out_features, 51);
      const DeviceArray<float> x(b, in);
      const DeviceArray<float> y(b, old);
      const DeviceArray<float> added(b, bias);
      b.linear({.in = x.data(),
                .weight = &weight,
                .bias = c.bias ? added.data() : nullptr,
                .out = y.data(),
                .num_rows = c.rows,
                .in_stride = kIn + 3,
                .out_stride = 60,
                .accumulate = c.accumulate});
      return y.read();
    });
  }
}

TEST_F(BackendTest, PackLinearRefuses) {
  const std::vector<float> data(12);
  const auto pack = [&](std::vector<TensorView> parts, DType dtype) {
    (void)cuda_->pack_linear(parts, dtype);
  };
  const TensorView good = testing::matrix(data.data(), DType::kFloat32, 3, 4);
  EXPECT_THROW(pack({}, DType::kFloat32), std::invalid_argument);
  EXPECT_THROW(pack({good}, DType::kInt8), std::invalid_argument);
  EXPECT_THROW(pack({good, testing::matrix(data.data(), DType::kFloat32, 4, 3)}, DType::kFloat32),
               std::invalid_argument);
  EXPECT_THROW(pack({testing::matrix(nullptr, DType::kFloat32, 3, 4)}, DType::kFloat32),
               std::invalid_argument);
}

// ---- Attention

struct CacheShape {
  DType dtype;
  std::int32_t head_dim;
  std::int32_t num_heads;
  std::int32_t num_kv_heads;
  std::int32_t block_size;
  double tolerance;
};

/// A prefill, a decode step, a tree over a context, and a tree whose first level an earlier pass
/// wrote; then some rows move and the trees are read again. Blocks are scattered.
class AttentionScene {
 public:
  AttentionScene(const CacheShape& shape, std::uint64_t seed) : shape_(shape), random_(seed) {
    blocks_.resize(static_cast<std::size_t>(kBlocksEach) * 4);
    for (std::size_t i = 0; i < blocks_.size(); ++i) blocks_[i] = static_cast<BlockId>(i);
    std::shuffle(blocks_.begin(), blocks_.end(), random_.engine());
    add({.num_causal = 19});
    add({.context_len = 33, .num_causal = 1});
    parents_ = {{-1, 0, 0, -1, 2, 3, 4}, {-1, -1, 0, 1, 1, 3}};
    add({.context_len = 21, .num_causal = 1, .num_tree = 7, .tree_parents = parents_[0]});
    add({.context_len = 40, .num_tree = 4, .tree_start = 2, .tree_parents = parents_[1]});
  }

  /// Outputs of all passes, one behind the other.
  std::vector<float> run(Backend& backend, std::int32_t sliding_window) {
    Random values(5);
    backend_ = &backend;
    kv_ = backend.allocate_kv(2, static_cast<std::int32_t>(blocks_.size()), shape_.block_size,
                              shape_.num_kv_heads, shape_.head_dim, shape_.dtype);
    fill_context(values);
    std::vector<float> out = pass(values, sliding_window);
    // The tree of sequence 2: node 6 (0, 2, 4, 6) moves behind node 0; an overlapping chain.
    const std::int32_t at = 22;
    std::vector<SlotId> sources, destinations;
    for (const auto& [from, to] : {std::pair{2, 1}, std::pair{4, 2}, std::pair{6, 3}}) {
      sources.push_back(slot(2, at + from));
      destinations.push_back(slot(2, at + to));
    }
    backend.move_kv(kv_, {.sources = sources, .destinations = destinations});
    const std::vector<float> again = pass(values, sliding_window, 1);
    out.insert(out.end(), again.begin(), again.end());
    return out;
  }

 private:
  static constexpr std::int32_t kBlocksEach = 4;

  void add(AttentionSequence s) {
    s.first_row = num_rows_;
    s.block_table = std::span(blocks_).subspan(sequences_.size() * kBlocksEach, kBlocksEach);
    num_rows_ += s.num_causal + s.num_tree;
    sequences_.push_back(s);
  }
  [[nodiscard]] SlotId slot(std::size_t sequence, std::int32_t key) const {
    const BlockId block =
        sequences_[sequence].block_table[static_cast<std::size_t>(key / shape_.block_size)];
    return block * shape_.block_size + key % shape_.block_size;
  }
  [[nodiscard]] std::int32_t row_size() const {
    return (shape_.num_heads + 2 * shape_.num_kv_heads) * shape_.head_dim;
  }

  /// K and V of everything before the pass, node rows of earlier passes included.
  void fill_context(Random& values) {
    std::vector<SlotId> slots;
    std::vector<std::int32_t> positions;
    for (std::size_t s = 0; s < sequences_.size(); ++s) {
      const AttentionSequence& q = sequences_[s];
      for (std::int32_t key = 0; key < q.context_len + q.tree_start; ++key) {
        slots.push_back(slot(s, key));
        positions.push_back(std::min(key, q.context_len));
      }
    }
    for (std::int32_t layer = 0; layer < 2; ++layer) append(values, layer, slots, positions);
  }

  /// Returns the rotated q on the device's side and on the host's.
  std::vector<float> append(Random& values, std::int32_t layer, const std::vector<SlotId>& slots,
                            const std::vector<std::int32_t>& positions) {
    const std::size_t rows = slots.size();
    const std::int32_t half = shape_.head_dim / 2;
    std::vector<float> cosines, sines;
    for (std::int32_t p = 0; p < 64; ++p) {
      for (std::int32_t i = 0; i < half; ++i) {
        const double angle = p * std::pow(100.0, -static_cast<double>(i) / half);
        cosines.push_back(static_cast<float>(std::cos(angle)));
        sines.push_back(static_cast<float>(std::sin(angle)));
      }
    }
    const DeviceArray<float> cos(*backend_, cosines);
    const DeviceArray<float> sin(*backend_, sines);
    qkv_ = std::make_unique<DeviceArray<float>>(
        *backend_, values.normals(rows * static_cast<std::size_t>(row_size())));
    const DeviceArray<std::int32_t> at(*backend_, positions);
    const DeviceArray<SlotId> to(*backend_, slots);
    float* q = qkv_->data();
    float* k = q + shape_.num_heads * shape_.head_dim;
    backend_->rope_and_append_kv({.q = q,
                                  .k = k,
                                  .v = k + shape_.num_kv_heads * shape_.head_dim,
                                  .row_stride = row_size(),
                                  .cos = cos.data(),
                                  .sin = sin.data(),
                                  .positions = at.data(),
                                  .slots = to.data(),
                                  .kv = &kv_,
                                  .layer = layer,
                                  .num_rows = static_cast<std::int32_t>(rows),
                                  .num_heads = shape_.num_heads});
    return qkv_->read();
  }

  /// Appends the rows' K and V (unless `skip_append`) and attends in both layers.
  std::vector<float> pass(Random& values, std::int32_t window, int skip_append = 0) {
    std::vector<SlotId> slots;
    std::vector<std::int32_t> positions;
    for (std::size_t s = 0; s < sequences_.size(); ++s) {
      const AttentionSequence& q = sequences_[s];
      for (std::int32_t i = 0; i < q.num_causal + q.num_tree; ++i) {
        const std::int32_t skipped = i < q.num_causal ? 0 : q.tree_start;
        slots.push_back(slot(s, q.context_len + i + skipped));
        positions.push_back(q.context_len + std::min(i, q.num_causal + 3));
      }
    }
    plan_ = backend_->plan_attention(sequences_, shape_.block_size, std::move(plan_));
    std::vector<float> all;
    for (std::int32_t layer = 0; layer < 2; ++layer) {
      if (skip_append == 0) append(values, layer, slots, positions);
      const std::int64_t out_stride = shape_.num_heads * shape_.head_dim;
      const DeviceArray<float> out(*backend_, slots.size() * static_cast<std::size_t>(out_stride));
      backend_->tree_attention({.plan = plan_.get(),
                                .q = qkv_->data(),
                                .out = out.data(),
                                .q_stride = row_size(),
                                .out_stride = out_stride,
                                .kv = &kv_,
                                .layer = layer,
                                .num_heads = shape_.num_heads,
                                .scale = 0.3F,
                                .sliding_window = layer == 0 ? window : 0});
      const std::vector<float> read = out.read();
      all.insert(all.end(), read.begin(), read.end());
    }
    return all;
  }

  CacheShape shape_;
  Random random_;
  std::vector<BlockId> blocks_;
  std::vector<std::vector<std::int32_t>> parents_;
  std::vector<AttentionSequence> sequences_;
  std::int32_t num_rows_ = 0;
  Backend* backend_ = nullptr;
  KvMemory kv_;
  std::unique_ptr<DeviceArray<float>> qkv_;  // of the last append
  std::unique_ptr<AttentionPlan> plan_;
};

class BackendAttentionTest : public ::testing::TestWithParam<CacheShape> {};

TEST_P(BackendAttentionTest, RopeAppendAttendMove) {
  for (const std::int32_t window : {0, 5}) {
    SCOPED_TRACE("window " + std::to_string(window));
    const auto cpu = make_cpu_backend(1);
    const auto right = AttentionScene(GetParam(), 3).run(*cpu, window);
    for (const bool invariant : {false, true}) {
      const auto device = cuda::make_cuda_backend({.batch_invariant = invariant});
      EXPECT_TRUE(
          close(AttentionScene(GetParam(), 3).run(*device, window), right, GetParam().tolerance))
          << "batch_invariant " << invariant;
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Shapes, BackendAttentionTest,
                         ::testing::Values(CacheShape{DType::kFloat32, 12, 4, 2, 16, 2e-5},
                                           CacheShape{DType::kFloat32, 64, 2, 2, 32, 2e-5},
                                           CacheShape{DType::kBFloat16, 10, 3, 1, 16, 1e-2},
                                           CacheShape{DType::kBFloat16, 64, 4, 2, 16, 1e-2},
                                           CacheShape{DType::kBFloat16, 128, 4, 1, 32, 1e-2}),
                         [](const auto& shape) {
                           return std::string(name_of(shape.param.dtype)) + "_" +
                                  std::to_string(shape.param.head_dim);
                         });

TEST_F(BackendTest, PlansRefuseWhatTheyCannotHold) {
  const std::vector<BlockId> blocks = {0, 1};
  const std::vector<std::int32_t> wide(257, -1), wrong = {0};
  const AttentionSequence good{.num_causal = 3, .block_table = blocks};
  const auto refused = [&](AttentionSequence second, const std::string& field) {
    try {
      (void)cuda_->plan_attention(std::array{good, second}, 16, nullptr);
      ADD_FAILURE() << field << " was not refused";
    } catch (const std::invalid_argument& error) {
      EXPECT_NE(std::string(error.what()).find(field), std::string::npos) << error.what();
    }
  };
  refused({.first_row = 4, .num_causal = 1, .block_table = blocks}, "first_row");
  refused({.first_row = 3, .num_causal = 33, .block_table = blocks}, "block_table");
  refused({.first_row = 3, .num_tree = 257, .tree_parents = wide, .block_table = blocks}, "257");
  refused({.first_row = 3, .num_tree = 1, .tree_parents = wrong, .block_table = blocks}, "parent");
  refused({.first_row = 3, .num_tree = 1, .block_table = blocks}, "tree_parents");
  refused({.first_row = 3, .context_len = -1, .block_table = blocks}, "context_len");

  // A plan of another backend, or of another cache.
  KvMemory kv = cuda_->allocate_kv(1, 1, 16, 1, 16, DType::kFloat32);
  const DeviceArray<float> q(*cuda_, 3 * 16);
  TreeAttentionParams p{
      .q = q.data(), .out = q.data(), .q_stride = 16, .out_stride = 16, .kv = &kv, .num_heads = 1};
  const auto foreign = cpu_->plan_attention(std::array{good}, 16, nullptr);
  p.plan = foreign.get();
  EXPECT_THROW(cuda_->tree_attention(p), std::invalid_argument);
  const auto high = cuda_->plan_attention(
      std::array{AttentionSequence{.num_causal = 20, .block_table = blocks}}, 16, nullptr);
  p.plan = high.get();
  EXPECT_THROW(cuda_->tree_attention(p), std::invalid_argument);
  const auto empty = cuda_->plan_attention({}, 16, nullptr);
  p.plan = empty.get();
  EXPECT_NO_THROW(cuda_->tree_attention(p));
}

TEST_F(BackendTest, CacheAndMovesRefuse) {
  const auto cache = [&](std::int32_t block_size, std::int32_t head_dim, DType dtype) {
    (void)cuda_->allocate_kv(1, 2, block_size, 1, head_dim, dtype);
  };
  EXPECT_THROW(cache(257, 16, DType::kFloat32), std::invalid_argument);
  EXPECT_THROW(cache(16, 258, DType::kFloat32), std::invalid_argument);
  EXPECT_THROW(cache(16, 15, DType::kFloat32), std::invalid_argument);
  EXPECT_THROW(cache(16, 16, DType::kInt8), std::invalid_argument);
  KvMemory kv = cuda_->allocate_kv(1, 2, 16, 1, 16, DType::kFloat32);
  const auto move = [&](std::vector<SlotId> from, std::vector<SlotId> to) {
    cuda_->move_kv(kv, {.sources = from, .destinations = to});
  };
  EXPECT_NO_THROW(move({}, {}));
  EXPECT_THROW(move({1}, {1, 2}), std::invalid_argument);
  EXPECT_THROW(move({32}, {1}), std::invalid_argument);
  EXPECT_THROW(move({1}, {-1}), std::invalid_argument);
}

TEST_F(BackendTest, OutOfMemoryIsAnErrorAndNotTheEnd) {
  const std::size_t before = emulation::device_bytes_in_use();
  {
    const emulation::ScopedMemoryLimit limit(before + 1000);
    try {
      (void)cuda_->allocate_kv(2, 64, 16, 2, 64, DType::kFloat32);
      FAIL() << "there was memory";
    } catch (const DeviceError& error) {
      const std::string text = error.what();
      EXPECT_NE(text.find(std::to_string(2 * 2 * 64 * 16 * 2 * 64 * 4)), std::string::npos) << text;
      EXPECT_NE(text.find("1000 free"), std::string::npos) << text;
    }
    EXPECT_EQ(emulation::device_bytes_in_use(), before);
    EXPECT_NO_THROW((void)cuda_->allocate(10));
  }
  EXPECT_NO_THROW((void)cuda_->allocate_kv(2, 64, 16, 2, 64, DType::kFloat32));
  EXPECT_EQ(emulation::device_bytes_in_use(), before);
  EXPECT_NO_THROW((void)cuda::make_cuda_backend({}));
  EXPECT_NO_THROW((void)cpu_->allocate(10));
}

}  // namespace
}  // namespace smartspec
