// SPDX-FileCopyrightText: The SmartSpec authors
// SPDX-License-Identifier: Apache-2.0
// append_kv against double precision, over all element types, layouts and alignments.
#include "cpu/isa.hpp"
#include "emulation/schedule.hpp"
#include "kv_scene.hpp"

namespace smartspec {
namespace {

using test::Bytes;
using test::Caches;
using test::Random;

constexpr std::int32_t kMaxPosition = 50;

/// Rows of q, k and v: three buffers, or one with k and v behind q.
struct Rows {
  DType dtype = DType::kFloat32;
  int num_heads = 0;
  Bytes memory[3];
  std::byte* base[3] = {};  // q, k, v
  std::int64_t stride[3] = {};

  [[nodiscard]] std::byte* at(int which, int row, std::int64_t index) const {
    return base[which] + (row * stride[which] + index) * static_cast<std::int64_t>(size_of(dtype));
  }
};

void fill(Random& random, DType dtype, Bytes& memory, std::size_t offset) {
  for (std::size_t i = offset; i + size_of(dtype) <= memory.size(); i += size_of(dtype)) {
    test::encode(dtype, test::nearest(dtype, random.normal() * 3.0F), memory.data() + i);
  }
}

Rows make_rows(Random& random, int num_rows, int num_heads, const cuda::PagedKv& kv) {
  Rows rows;
  rows.dtype = random.choice<DType>({DType::kFloat32, DType::kBFloat16, DType::kFloat16});
  rows.num_heads = num_heads;
  const std::size_t size = size_of(rows.dtype);
  const std::size_t offset = random.integer(0, 3) == 0 ? size : 0;
  const std::int64_t gap = random.integer(0, 2) == 0 ? random.integer(0, 9) : 0;
  const std::int64_t widths[3] = {std::int64_t{num_heads} * kv.head_dim,
                                  std::int64_t{kv.num_kv_heads} * kv.head_dim,
                                  std::int64_t{kv.num_kv_heads} * kv.head_dim};
  const bool fused = random.integer(0, 1) == 0;
  for (int i = 0; i < 3; ++i) {
    rows.stride[i] = fused ? widths[0] + widths[1] + widths[2] + gap : widths[i] + gap;
    if (fused && i > 0) {
      rows.base[i] = rows.base[i - 1] + widths[i - 1] * static_cast<std::int64_t>(size);
      continue;
    }
    rows.memory[i].resize(offset + static_cast<std::size_t>(num_rows * rows.stride[i]) * size);
    fill(random, rows.dtype, rows.memory[i], offset);
    rows.base[i] = rows.memory[i].data() + offset;
  }
  return rows;
}

struct Scene {
  Caches caches;
  Rows rows;
  std::vector<float> cos;
  std::vector<float> sin;
  std::vector<std::int32_t> positions;
  std::vector<SlotId> slots;
  std::vector<float> scales[2];
  cuda::AppendKv append{};
};

Scene make_scene(Random& random, const cuda::PagedKv& shape, int num_rows) {
  Scene s;
  s.caches = test::make_caches(random, shape, 1, num_rows + 3);
  s.rows = make_rows(random, num_rows, random.integer(1, 6), shape);
  const auto table = static_cast<std::size_t>(kMaxPosition * shape.head_dim / 2);
  for (std::size_t i = 0; i < table; ++i) {
    const double angle = static_cast<double>(i) * 0.37;
    s.cos.push_back(static_cast<float>(std::cos(angle)));
    s.sin.push_back(static_cast<float>(std::sin(angle)));
  }
  const std::vector<int> order = test::shuffled(random, s.caches.num_slots());
  for (int r = 0; r < num_rows; ++r) {
    const bool skipped = random.integer(0, 5) == 0;
    s.slots.push_back(skipped ? -1 : order[static_cast<std::size_t>(r)]);
    // Of a skipped row nothing may be read, its position neither.
    s.positions.push_back(skipped ? 1 << 30 : random.integer(0, kMaxPosition - 1));
  }
  cuda::AppendKv& p = s.append;
  p.kv = s.caches.shape();
  for (auto* scale : {&s.scales[0], &s.scales[1]}) {
    for (int h = 0; h < shape.num_kv_heads; ++h) {
      scale->push_back(std::ldexp(1.0F + 0.3F * static_cast<float>(h % 2), random.integer(-6, 0)));
    }
  }
  if (random.integer(0, 2) > 0) p.kv.k_scale = s.scales[0].data();
  if (random.integer(0, 2) > 0) p.kv.v_scale = s.scales[1].data();
  if (random.integer(0, 3) > 0) p.q = s.rows.base[0];
  p.k = s.rows.base[1];
  p.v = s.rows.base[2];
  p.dtype = s.rows.dtype;
  p.q_stride = s.rows.stride[0];
  p.k_stride = s.rows.stride[1];
  p.v_stride = s.rows.stride[2];
  if (random.integer(0, 3) > 0) {
    p.cos = s.cos.data();
    p.sin = s.sin.data();
    p.positions = s.positions.data();
  }
  p.slots = s.slots.data();
  p.num_rows = num_rows;
  p.num_heads = s.rows.num_heads;
  return s;
}

struct Wanted {
  double value = 0.0;
  double error = 0.0;  // of f32 arithmetic before the last rounding
};

/// Element `dim` of a head after the rotation, if there is one.
Wanted rotated(const Scene& s, const Rows& before, int which, int row, int head, int dim) {
  const int width = s.append.kv.head_dim;
  const int half = width / 2;
  const auto value = [&](int d) {
    return test::decode(before.dtype, before.at(which, row, std::int64_t{head} * width + d));
  };
  if (s.append.cos == nullptr || which == 2) return {value(dim), 0.0};
  const auto at =
      static_cast<std::size_t>(s.positions[static_cast<std::size_t>(row)] * half + dim % half);
  const double a = value(dim % half);
  const double b = value(dim % half + half);
  const double c = s.cos[at];
  const double n = s.sin[at];
  return {dim < half ? a * c - b * n : b * c + a * n, 3.0 * 0x1p-24 * (std::abs(a) + std::abs(b))};
}

/// Rounding is monotone, so the result lies between the roundings of both ends.
void expect_rounded(DType dtype, const std::byte* got, Wanted want) {
  const double value = test::decode(dtype, got);
  ASSERT_GE(value, test::nearest(dtype, want.value - want.error)) << name_of(dtype);
  ASSERT_LE(value, test::nearest(dtype, want.value + want.error)) << name_of(dtype);
}

/// Checks the written elements of K (which 1) or V (2), and that no other byte changed.
void check_cache(const Scene& s, const Rows& before, const Bytes& old, int which) {
  const cuda::PagedKv& kv = s.append.kv;
  const Bytes& now = s.caches.memory[static_cast<std::size_t>(which - 1)];
  const float* scales = which == 1 ? kv.k_scale : kv.v_scale;
  std::vector<bool> written(now.size(), false);
  for (int r = 0; r < s.append.num_rows; ++r) {
    const SlotId slot = s.slots[static_cast<std::size_t>(r)];
    if (slot < 0) continue;
    for (int h = 0; h < kv.num_kv_heads; ++h) {
      for (int d = 0; d < kv.head_dim; ++d) {
        Wanted want = rotated(s, before, which, r, h, d);
        if (size_of(kv.dtype) == 1 && scales != nullptr) {
          want.value /= scales[h];
          want.error = want.error / scales[h] + 0x1p-24 * std::abs(want.value);
        }
        const std::size_t at = s.caches.offset + test::element(kv, slot, h, d) * size_of(kv.dtype);
        ASSERT_NO_FATAL_FAILURE(expect_rounded(kv.dtype, &now[at], want));
        for (std::size_t i = 0; i < size_of(kv.dtype); ++i) written[at + i] = true;
      }
    }
  }
  for (std::size_t i = 0; i < now.size(); ++i) {
    if (!written[i]) {
      ASSERT_EQ(now[i], old[i]) << "byte " << i;
    }
  }
}

/// q is rotated in place; everything else of the rows stays as it was.
void check_rows(const Scene& s, const Rows& before) {
  const std::size_t size = size_of(s.rows.dtype);
  Rows now = s.rows;
  for (int i = 0; i < 3; ++i) now.memory[i] = s.rows.memory[i];
  if (s.append.q != nullptr && s.append.cos != nullptr) {
    for (int r = 0; r < s.append.num_rows; ++r) {
      if (s.slots[static_cast<std::size_t>(r)] < 0) continue;
      for (int i = 0; i < s.append.num_heads * s.append.kv.head_dim; ++i) {
        const std::byte* at = s.rows.at(0, r, i);
        const int dim = s.append.kv.head_dim;
        ASSERT_NO_FATAL_FAILURE(
            expect_rounded(s.rows.dtype, at, rotated(s, before, 0, r, i / dim, i % dim)));
        std::memcpy(now.memory[0].data() + (at - s.rows.memory[0].data()), before.at(0, r, i),
                    size);
      }
    }
  }
  for (int i = 0; i < 3; ++i) ASSERT_EQ(now.memory[i], before.memory[i]);
}

/// A copy whose pointers are its own.
Rows copy_of(const Rows& rows) {
  Rows copy = rows;
  for (int i = 0; i < 3; ++i) {
    for (int m = 0; m < 3; ++m) {
      const Bytes& from = rows.memory[m];
      if (rows.base[i] >= from.data() && rows.base[i] < from.data() + from.size()) {
        copy.base[i] = copy.memory[m].data() + (rows.base[i] - from.data());
      }
    }
  }
  return copy;
}

TEST(AppendKv, MatchesDoublePrecision) {
  Random random(1);
  const std::vector<int> dims = {2, 4, 6, 10, 16, 34, 48, 64, 80, 128, 256};
  for (int round = 0; round < 400; ++round) {
    SCOPED_TRACE(round);
    Scene s = make_scene(random, test::random_shape(random, dims), random.integer(1, 9));
    const Rows before = copy_of(s.rows);
    const std::vector<Bytes> old = s.caches.memory;
    const emulation::ScopedSchedule order(
        {emulation::Order::kMixed, static_cast<std::uint64_t>(round)});
    cuda::append_kv(s.append, nullptr);
    ASSERT_NO_FATAL_FAILURE(check_rows(s, before));
    ASSERT_NO_FATAL_FAILURE(check_cache(s, before, old[0], 1));
    ASSERT_NO_FATAL_FAILURE(check_cache(s, before, old[1], 2));
  }
}

/// One row of one head in f32, stored without rotation.
Bytes store(DType dtype, std::vector<float> values, float scale) {
  Bytes k(values.size() * size_of(dtype));
  Bytes v(k.size());
  const SlotId slot = 0;
  cuda::AppendKv p;
  p.k = values.data();
  p.v = values.data();
  p.dtype = DType::kFloat32;
  p.slots = &slot;
  p.num_rows = 1;
  p.kv.k = k.data();
  p.kv.v = v.data();
  p.kv.dtype = dtype;
  p.kv.page_size = 1;
  p.kv.num_kv_heads = 1;
  p.kv.head_dim = static_cast<std::int32_t>(values.size());
  p.kv.page_stride = p.kv.head_dim;
  p.kv.k_scale = &scale;
  p.kv.v_scale = &scale;
  cuda::append_kv(p, nullptr);
  EXPECT_EQ(k, v);
  return k;
}

TEST(AppendKv, RoundsToEvenAndSaturates) {
  const float inf = std::numeric_limits<float>::infinity();
  const std::vector<float> in = {0.5F,   1.5F,    2.5F, -0.5F, -1.5F,         126.5F,
                                 127.5F, -128.5F, 1e9F, -inf,  std::nanf(""), -3.4999F};
  const std::vector<int> int8 = {0, 2, 2, 0, -2, 126, 127, -128, 127, -128, 0, -3};
  // 15: multiplying by the inverse would make 2.5 a little more than that.
  for (const float scale : {1.0F, 0.25F, 15.0F}) {
    std::vector<float> scaled = in;
    for (float& x : scaled) x *= scale;
    const Bytes bytes = store(DType::kInt8, scaled, scale);
    for (std::size_t i = 0; i < in.size(); ++i) {
      EXPECT_EQ(std::to_integer<std::int8_t>(bytes[i]), int8[i]) << in[i];
    }
  }
  const std::vector<float> wide = {1e9F, -1e9F, inf, -inf, 449.0F, 57344.0F, std::nanf(""), 0.0F};
  const Bytes e4m3 = store(DType::kFloat8E4M3, wide, 1.0F);
  const Bytes e5m2 = store(DType::kFloat8E5M2, wide, 1.0F);
  for (std::size_t i = 0; i < 4; ++i) {
    EXPECT_EQ(test::decode(DType::kFloat8E4M3, &e4m3[i]), i % 2 == 0 ? 448.0 : -448.0);
    EXPECT_EQ(test::decode(DType::kFloat8E5M2, &e5m2[i]), i % 2 == 0 ? 57344.0 : -57344.0);
  }
  EXPECT_EQ(test::decode(DType::kFloat8E4M3, &e4m3[4]), 448.0);
  EXPECT_EQ(test::decode(DType::kFloat8E5M2, &e5m2[4]), 448.0);
  EXPECT_TRUE(std::isnan(test::decode(DType::kFloat8E4M3, &e4m3[6])));
  EXPECT_TRUE(std::isnan(test::decode(DType::kFloat8E5M2, &e5m2[6])));
}

TEST(AppendKv, RotatesAsTheCpuDoes) {
  Random random(3);
  const auto cpu = cpu::make_cpu_backend(1, "generic");
  constexpr int kRows = 7;
  constexpr int kHeads = 3;
  constexpr int kDim = 40;
  constexpr std::size_t kStride = (kHeads + 2) * kDim;
  std::vector<float> rows = random.normals(kRows * kStride);
  std::vector<float> ours = rows;
  const std::vector<float> cos = random.normals(kMaxPosition * kDim / 2);
  const std::vector<float> sin = random.normals(kMaxPosition * kDim / 2);
  const std::vector<std::int32_t> positions = {0, 3, 49, 7, 7, 8, 21};
  const std::vector<SlotId> slots = {5, 1, 0, 31, 16, 17, 2};
  KvMemory memory = cpu->allocate_kv(1, 2, 16, 1, kDim, DType::kFloat32);
  cpu->rope_and_append_kv({rows.data(), rows.data() + kHeads * kDim,
                           rows.data() + (kHeads + 1) * kDim, kStride, cos.data(), sin.data(),
                           positions.data(), slots.data(), &memory, 0, kRows, kHeads});
  std::vector<float> cache(2 * 32 * kDim);
  cuda::AppendKv p;
  p.q = ours.data();
  p.k = ours.data() + kHeads * kDim;
  p.v = ours.data() + (kHeads + 1) * kDim;
  p.dtype = DType::kFloat32;
  p.q_stride = p.k_stride = p.v_stride = kStride;
  p.cos = cos.data();
  p.sin = sin.data();
  p.positions = positions.data();
  p.slots = slots.data();
  p.kv = {cache.data(),
          cache.data() + 32 * kDim,
          DType::kFloat32,
          16,
          1,
          kDim,
          16 * kDim,
          kDim,
          kDim,
          nullptr,
          nullptr};
  p.num_rows = kRows;
  p.num_heads = kHeads;
  cuda::append_kv(p, nullptr);
  EXPECT_TRUE(test::same_bits(ours, rows));
}

TEST(AppendKv, RefusesWhatIsWrong) {
  Random random(4);
  cuda::PagedKv shape;
  shape.num_kv_heads = 2;
  shape.head_dim = 8;
  Scene s = make_scene(random, shape, 3);
  s.append.q = s.rows.base[0];
  s.append.cos = s.cos.data();
  s.append.sin = s.sin.data();
  s.append.positions = s.positions.data();
  const std::vector<Bytes> old = s.caches.memory;
  const auto refused = [&](const std::string& text, const auto& change) {
    cuda::AppendKv p = s.append;
    change(p);
    test::expect_refused(text, [&] { cuda::append_kv(p, nullptr); });
  };
  using P = cuda::AppendKv;
  refused("append_kv: num_rows is -1; allowed: at least 0", [](P& p) { p.num_rows = -1; });
  refused("append_kv: k is null; allowed: device memory", [](P& p) { p.k = nullptr; });
  refused("v is null", [](P& p) { p.v = nullptr; });
  refused("slots is null", [](P& p) { p.slots = nullptr; });
  refused("sin is null", [](P& p) { p.sin = nullptr; });
  refused("positions is null", [](P& p) { p.positions = nullptr; });
  refused("cos is null", [](P& p) { p.cos = nullptr; });
  refused("dtype is int8; allowed: float32, bfloat16, float16",
          [](P& p) { p.dtype = DType::kInt8; });
  refused("num_heads is 0; allowed: 1 to", [](P& p) { p.num_heads = 0; });
  refused("k_stride is 15; allowed: at least 16", [](P& p) { p.k_stride = 15; });
  refused("v_stride is -1", [](P& p) { p.v_stride = -1; });
  refused("q_stride is 0", [](P& p) { p.q_stride = 0; });
  refused("kv.k is null", [](P& p) { p.kv.k = nullptr; });
  refused("kv.v is null", [](P& p) { p.kv.v = nullptr; });
  refused("kv.dtype is int32; allowed: float32, bfloat16",
          [](P& p) { p.kv.dtype = DType::kInt32; });
  refused("kv.head_dim is 7; allowed: an even number up to 256", [](P& p) { p.kv.head_dim = 7; });
  refused("kv.page_size is 257; allowed: 1 to 256", [](P& p) { p.kv.page_size = 257; });
  refused("kv.num_kv_heads is 0; allowed: 1 to 1024", [](P& p) { p.kv.num_kv_heads = 0; });
  refused("kv.page_stride is 3; allowed: at least", [](P& p) { p.kv.page_stride = 3; });
  refused("kv.token_stride is 0", [](P& p) { p.kv.token_stride = 0; });
  EXPECT_EQ(s.caches.memory, old);
  cuda::AppendKv nothing;
  EXPECT_NO_THROW(cuda::append_kv(nothing, nullptr));
}

}  // namespace
}  // namespace smartspec
