// SPDX-FileCopyrightText: The SmartSpec authors
// SPDX-License-Identifier: Apache-2.0
// Random passes of tree attention, and what must come out of them: double precision over an
// explicit list of the keys each row sees, found by walking from its node to the root. Cache slots
// that no sequence has written hold NaN, and page tables end in nonsense, so that what must not be
// read shows.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <limits>
#include <numeric>
#include <random>
#include <string>
#include <vector>

#include "numbers.hpp"
#include "smartspec/cuda_ops.hpp"

namespace smartspec::cuda {

using Random = std::mt19937;
inline int draw(Random& random, int low, int high) {
  return std::uniform_int_distribution<int>(low, high)(random);
}

struct SceneOptions {
  std::uint32_t seed = 1;
  int num_sequences = 4;
  int num_heads = 4;
  int num_kv_heads = 2;
  int head_dim = 64;
  int page_size = 16;
  DType kv_dtype = DType::kBFloat16;
  DType dtype = DType::kBFloat16;
  bool heads_outside = false;  // page layout [head, token, dim], not [token, head, dim]
  bool interleaved = false;    // V of a page lies behind its K
  int max_context = 150;
  int max_causal = 0;  // 0: num_causal is null
  int max_nodes = 20;
  bool earlier_nodes = false;  // some nodes were written by earlier passes
  bool has_scales = false;
  bool has_lse = true;
  float scale = 0.0F;
  float soft_cap = 0.0F;
  int window = 0;
  int spare_rows = 0;           // of the captured grid, beyond those of the sequences
  AttentionPlanOptions plan{};  // shape fields are set by make_scene
};

struct SceneSequence {
  int context_len = 0;
  int num_causal = 0;
  int tree_rows = 0;
  std::vector<std::int32_t> parents{};
  std::vector<BlockId> pages{};
  int q_row = 0;  // of its first row in Scene::q

  [[nodiscard]] int num_nodes() const { return static_cast<int>(parents.size()); }
  [[nodiscard]] int num_rows() const { return num_causal + tree_rows; }
  [[nodiscard]] int num_keys() const { return context_len + num_causal + num_nodes(); }
};

/// All on the host.
struct Scene {
  SceneOptions options{};
  std::vector<SceneSequence> sequences;
  int num_pages = 0;
  std::vector<std::byte> k;  // stored bits
  std::vector<std::byte> v;
  std::vector<std::byte> q;    // [rows, heads, dim] without gaps
  std::vector<float> k_scale;  // [kv heads]
  std::vector<float> v_scale;

  [[nodiscard]] int num_rows() const {
    int rows = 0;
    for (const SceneSequence& s : sequences) rows += s.num_rows();
    return rows;
  }
  [[nodiscard]] std::size_t row_size() const {
    return static_cast<std::size_t>(options.num_heads) * static_cast<std::size_t>(options.head_dim);
  }
  /// Of (page, token, head) in elements, without gaps.
  [[nodiscard]] std::size_t kv_index(BlockId page, int token, int head) const {
    const int heads = options.num_kv_heads;
    const int in_page =
        options.heads_outside ? head * options.page_size + token : token * heads + head;
    return (static_cast<std::size_t>(page) * static_cast<std::size_t>(options.page_size * heads) +
            static_cast<std::size_t>(in_page)) *
           static_cast<std::size_t>(options.head_dim);
  }
};

// ---- Numbers

template <class T>
T load_bits(const std::vector<std::byte>& data, std::size_t index) {
  T value;
  std::memcpy(&value, data.data() + index * sizeof(T), sizeof(T));
  return value;
}
template <class T>
void store_bits(std::vector<std::byte>& data, std::size_t index, T value) {
  std::memcpy(data.data() + index * sizeof(T), &value, sizeof(T));
}

inline double decode(DType type, const std::vector<std::byte>& data, std::size_t index) {
  switch (type) {
    case DType::kFloat32:
      return static_cast<double>(load_bits<float>(data, index));
    case DType::kBFloat16:
      return static_cast<double>(emulation::bf16_to_float(load_bits<std::uint16_t>(data, index)));
    case DType::kFloat16:
      return static_cast<double>(emulation::f16_to_float(load_bits<std::uint16_t>(data, index)));
    case DType::kFloat8E4M3:
      return static_cast<double>(
          emulation::f16_to_float(emulation::e4m3_to_f16(load_bits<std::uint8_t>(data, index))));
    case DType::kFloat8E5M2:
      return static_cast<double>(emulation::f16_to_float(
          static_cast<std::uint16_t>(load_bits<std::uint8_t>(data, index) << 8)));
    default:
      return static_cast<double>(load_bits<std::int8_t>(data, index));
  }
}
inline void encode(DType type, std::vector<std::byte>& data, std::size_t index, float value) {
  switch (type) {
    case DType::kFloat32:
      return store_bits(data, index, value);
    case DType::kBFloat16:
      return store_bits(data, index, emulation::float_to_bf16(value));
    case DType::kFloat16:
      return store_bits(data, index, emulation::float_to_f16(value));
    case DType::kFloat8E4M3:
      return store_bits(data, index, emulation::float_to_e4m3(value));
    case DType::kFloat8E5M2:
      return store_bits(data, index, emulation::float_to_e5m2(value));
    default:
      return store_bits(data, index,
                        static_cast<std::int8_t>(std::clamp(value * 40.0F, -127.0F, 127.0F)));
  }
}
/// Half the distance from 1 to the next number, relative: the error of one rounding.
inline double rounding_of(DType type) {
  if (type == DType::kFloat32) return 0x1p-24;
  return type == DType::kBFloat16 ? 0x1p-9 : 0x1p-12;
}

// ---- Making scenes

inline std::vector<std::int32_t> random_tree(Random& random, int num_nodes) {
  const int kind = draw(random, 0, 3);
  std::vector<std::int32_t> parents{};
  for (int i = 0; i < num_nodes; ++i) {
    const int parent = kind == 0   ? i - 1            // chain
                       : kind == 1 ? -1               // star
                       : kind == 2 ? (i + 1) / 2 - 1  // binary
                                   : draw(random, -1, i - 1);
    parents.push_back(parent);
  }
  return parents;
}

inline SceneSequence random_sequence(Random& random, const SceneOptions& options) {
  SceneSequence s;
  // Lengths around tile and chunk boundaries more often than others.
  const int around = 64 * draw(random, 0, options.max_context / 64) + draw(random, -2, 2);
  s.context_len = draw(random, 0, 1) == 0 ? draw(random, 0, options.max_context)
                                          : std::clamp(around, 0, options.max_context);
  if (draw(random, 0, 7) == 0) return s;  // takes no part in this pass
  if (options.max_causal > 0 && draw(random, 0, 2) > 0) {
    s.num_causal = draw(random, 1, options.max_causal);
  }
  if (s.num_causal == 0 || draw(random, 0, 1) == 0) {
    s.parents = random_tree(random, draw(random, 1, options.max_nodes));
    s.tree_rows = options.earlier_nodes ? draw(random, 1, s.num_nodes()) : s.num_nodes();
  }
  return s;
}

inline void write_random(Random& random, DType type, std::vector<std::byte>& data,
                         std::size_t begin, int count) {
  std::normal_distribution<float> normal;
  for (int i = 0; i < count; ++i) {
    encode(type, data, begin + static_cast<std::size_t>(i), normal(random));
  }
}

/// Hands out pages in random order and fills the keys.
inline void fill_cache(Random& random, Scene& scene) {
  const SceneOptions& options = scene.options;
  const auto pages_of = [&](const SceneSequence& s) {
    return (s.num_keys() + options.page_size - 1) / options.page_size;
  };
  for (const SceneSequence& s : scene.sequences) scene.num_pages += pages_of(s);
  scene.num_pages += 2;
  std::vector<BlockId> free(static_cast<std::size_t>(scene.num_pages));
  std::iota(free.begin(), free.end(), 0);
  std::shuffle(free.begin(), free.end(), random);
  const std::size_t bytes = scene.kv_index(scene.num_pages, 0, 0) * size_of(options.kv_dtype);
  scene.k.assign(bytes, std::byte{0xFF});
  scene.v.assign(bytes, std::byte{0xFF});
  for (SceneSequence& s : scene.sequences) {
    for (int p = 0; p < pages_of(s); ++p) {
      s.pages.push_back(free.back());
      free.pop_back();
    }
    for (int key = 0; key < s.num_keys(); ++key) {
      const BlockId page = s.pages[static_cast<std::size_t>(key / options.page_size)];
      for (int head = 0; head < options.num_kv_heads; ++head) {
        const std::size_t at = scene.kv_index(page, key % options.page_size, head);
        write_random(random, options.kv_dtype, scene.k, at, options.head_dim);
        write_random(random, options.kv_dtype, scene.v, at, options.head_dim);
      }
    }
  }
}

/// Sequences given, the rest random.
inline Scene make_scene(SceneOptions options, std::vector<SceneSequence> sequences) {
  Random random(options.seed + 77);
  options.num_sequences = static_cast<int>(sequences.size());
  options.plan.num_heads = options.num_heads;
  options.plan.num_kv_heads = options.num_kv_heads;
  options.plan.head_dim = options.head_dim;
  options.plan.kv_dtype = options.kv_dtype;
  Scene scene;
  scene.options = options;
  scene.sequences = std::move(sequences);
  int rows = 0;
  for (SceneSequence& s : scene.sequences) {
    s.q_row = rows;
    rows += s.num_rows();
  }
  fill_cache(random, scene);
  const std::size_t size = static_cast<std::size_t>(rows) * scene.row_size();
  scene.q.resize(size * size_of(options.dtype));
  write_random(random, options.dtype, scene.q, 0, static_cast<int>(size));
  if (options.has_scales) {
    for (int head = 0; head < options.num_kv_heads; ++head) {
      scene.k_scale.push_back(0.02F + 0.01F * static_cast<float>(head));
      scene.v_scale.push_back(0.5F - 0.03F * static_cast<float>(head));
    }
  }
  return scene;
}

inline Scene make_scene(const SceneOptions& options) {
  Random random(options.seed);
  std::vector<SceneSequence> sequences;
  for (int i = 0; i < options.num_sequences; ++i) {
    sequences.push_back(random_sequence(random, options));
  }
  return make_scene(options, std::move(sequences));
}

/// The same cache and queries with one sequence only.
inline Scene only_sequence(const Scene& scene, std::size_t index) {
  Scene alone = scene;
  alone.sequences = {scene.sequences[index]};
  alone.options.num_sequences = 1;
  return alone;
}

// ---- The oracle

struct SceneKey {
  int index = 0;
  int position = 0;
};

/// Keys that row `row` of the sequence sees, ascending.
inline std::vector<SceneKey> keys_seen(const SceneSequence& s, int row, int window) {
  std::vector<SceneKey> keys;
  const int prefix = s.context_len + s.num_causal;
  const int straight = row < s.num_causal ? s.context_len + row + 1 : prefix;
  for (int key = 0; key < straight; ++key) keys.push_back({key, key});
  if (row >= s.num_causal) {
    std::vector<int> path;
    for (int node = s.num_nodes() - s.tree_rows + row - s.num_causal; node >= 0;
         node = s.parents[static_cast<std::size_t>(node)]) {
      path.push_back(node);
    }
    std::reverse(path.begin(), path.end());
    for (std::size_t depth = 0; depth < path.size(); ++depth) {
      keys.push_back({prefix + path[depth], prefix + static_cast<int>(depth)});
    }
  }
  if (window > 0) {
    const int position = keys.back().position;
    std::erase_if(keys, [&](const SceneKey& k) { return k.position <= position - window; });
  }
  return keys;
}

struct ExpectedRow {
  std::vector<double> out;  // [head_dim]
  double lse = 0.0;
  double largest = 0.0;  // of the values it is a mean of
  std::size_t num_keys = 0;
};

inline ExpectedRow attend_exactly(const Scene& scene, const SceneSequence& s, int row, int head) {
  const SceneOptions& o = scene.options;
  const int kv_head = head / (o.num_heads / o.num_kv_heads);
  const auto dim = static_cast<std::size_t>(o.head_dim);
  const double k_scale =
      scene.k_scale.empty() ? 1.0
                            : static_cast<double>(scene.k_scale[static_cast<std::size_t>(kv_head)]);
  const double v_scale =
      scene.v_scale.empty() ? 1.0
                            : static_cast<double>(scene.v_scale[static_cast<std::size_t>(kv_head)]);
  const double scale = o.scale == 0.0F ? 1.0 / std::sqrt(static_cast<double>(o.head_dim))
                                       : static_cast<double>(o.scale);
  const std::size_t q_at = static_cast<std::size_t>(s.q_row + row) * scene.row_size() +
                           static_cast<std::size_t>(head) * dim;
  const std::vector<SceneKey> keys = keys_seen(s, row, o.window);
  std::vector<double> scores;
  std::vector<std::size_t> places;
  for (const SceneKey& key : keys) {
    const BlockId page = s.pages[static_cast<std::size_t>(key.index / o.page_size)];
    places.push_back(scene.kv_index(page, key.index % o.page_size, kv_head));
    double dot = 0.0;
    for (std::size_t d = 0; d < dim; ++d) {
      dot += decode(o.dtype, scene.q, q_at + d) * decode(o.kv_dtype, scene.k, places.back() + d);
    }
    dot *= scale * k_scale;
    const auto cap = static_cast<double>(o.soft_cap);
    scores.push_back(cap > 0.0 ? cap * std::tanh(dot / cap) : dot);
  }
  const double max = *std::max_element(scores.begin(), scores.end());
  double sum = 0.0;
  for (const double score : scores) sum += std::exp(score - max);
  ExpectedRow expected{std::vector<double>(dim), max + std::log(sum), 0.0, keys.size()};
  for (std::size_t i = 0; i < keys.size(); ++i) {
    const double weight = std::exp(scores[i] - max) / sum;
    for (std::size_t d = 0; d < dim; ++d) {
      const double value = v_scale * decode(o.kv_dtype, scene.v, places[i] + d);
      expected.out[d] += weight * value;
      expected.largest = std::max(expected.largest, std::abs(value));
    }
  }
  return expected;
}

}  // namespace smartspec::cuda
