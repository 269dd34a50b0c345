// SPDX-FileCopyrightText: The SmartSpec authors
// SPDX-License-Identifier: Apache-2.0
// Moves, page copies and swaps against element-by-element copies; the whole memory is compared, so
// a byte written beside its place fails the test.
#include "emulation/schedule.hpp"
#include "kv_scene.hpp"

namespace smartspec {
namespace {

using test::Bytes;
using test::Caches;
using test::Random;

const std::vector<int> kHeadDims = {1, 2, 3, 6, 16, 34, 64, 80, 128, 256};

/// The token at one slot to another, in the copy `memory`.
void move_token(const Caches& caches, std::vector<Bytes>& memory, SlotId from, SlotId to) {
  const cuda::PagedKv& kv = caches.shape();
  for (Bytes& bytes : memory) {
    for (int h = 0; h < kv.num_kv_heads; ++h) {
      for (int d = 0; d < kv.head_dim; ++d) {
        std::memmove(&bytes[caches.offset + test::element(kv, to, h, d) * caches.size()],
                     &bytes[caches.offset + test::element(kv, from, h, d) * caches.size()],
                     caches.size());
      }
    }
  }
}

struct Moves {
  std::vector<SlotId> sources;
  std::vector<SlotId> destinations;
  std::vector<std::int32_t> offsets = {0};
};

/// Groups with slots of their own; within a group chains: half of the sources were destinations.
Moves make_moves(Random& random, int num_slots, int num_groups) {
  Moves moves;
  const std::vector<int> order = test::shuffled(random, num_slots);
  const int share = num_slots / num_groups;
  for (int g = 0; g < num_groups; ++g) {
    const auto slot = [&] {
      return order[static_cast<std::size_t>(g * share + random.integer(0, share - 1))];
    };
    const std::size_t begin = moves.sources.size();
    for (int i = random.integer(0, 11); i > 0; --i) {
      SlotId from = slot();
      if (moves.sources.size() > begin && random.integer(0, 1) == 0) {
        from =
            moves.destinations[begin + static_cast<std::size_t>(random.integer(
                                           0, static_cast<int>(moves.sources.size() - begin) - 1))];
      }
      moves.sources.push_back(random.integer(0, 9) == 0 ? -1 : from);
      moves.destinations.push_back(random.integer(0, 9) == 0 ? -1 : slot());
    }
    moves.offsets.push_back(static_cast<std::int32_t>(moves.sources.size()));
  }
  return moves;
}

void run_moves(const Caches& caches, const Moves& moves, bool one_group) {
  cuda::MoveKv p;
  p.layers = caches.layers.data();
  p.num_layers = static_cast<std::int32_t>(caches.layers.size());
  p.sources = moves.sources.data();
  p.destinations = moves.destinations.data();
  p.num_moves = static_cast<std::int32_t>(moves.sources.size());
  if (!one_group) {
    p.group_offsets = moves.offsets.data();
    p.num_groups = static_cast<std::int32_t>(moves.offsets.size()) - 1;
  }
  cuda::move_kv(p, nullptr);
}

TEST(MoveKv, ChainsInEveryOrderOfThreads) {
  Random random(1);
  for (int round = 0; round < 150; ++round) {
    SCOPED_TRACE(round);
    const cuda::PagedKv shape = test::random_shape(random, kHeadDims);
    Caches caches = test::make_caches(random, shape, random.integer(1, 3), 30);
    const int groups = random.integer(1, 4);
    const Moves moves = make_moves(random, std::min(caches.num_slots(), 60), groups);
    const std::vector<Bytes> before = caches.memory;
    std::vector<Bytes> want = before;
    for (std::size_t i = 0; i < moves.sources.size(); ++i) {
      if (moves.sources[i] < 0 || moves.destinations[i] < 0) continue;
      move_token(caches, want, moves.sources[i], moves.destinations[i]);
    }
    emulation::for_each_schedule(1, [&] {
      for (std::size_t i = 0; i < before.size(); ++i) {
        std::copy(before[i].begin(), before[i].end(), caches.memory[i].begin());
      }
      run_moves(caches, moves, groups == 1 && round % 2 == 0);
      ASSERT_EQ(caches.memory, want);
    });
  }
}

TEST(MoveKv, AllLayersThatFit) {
  Random random(2);
  cuda::PagedKv shape;
  shape.page_size = 3;
  shape.num_kv_heads = 2;
  shape.head_dim = 8;
  Caches caches = test::make_caches(random, shape, 128, 6);
  std::vector<Bytes> want = caches.memory;
  move_token(caches, want, 4, 1);
  move_token(caches, want, 1, 2);
  run_moves(caches, {{4, 1}, {1, 2}, {0, 2}}, true);
  EXPECT_EQ(caches.memory, want);
}

TEST(CopyPages, CopiesNothingElse) {
  Random random(3);
  for (int round = 0; round < 150; ++round) {
    SCOPED_TRACE(round);
    const cuda::PagedKv shape = test::random_shape(random, kHeadDims);
    Caches caches = test::make_caches(random, shape, random.integer(1, 3), 8 * shape.page_size);
    const std::vector<int> order = test::shuffled(random, caches.num_pages);
    const int n = random.integer(0, caches.num_pages / 2);
    std::vector<BlockId> sources(order.begin(), order.begin() + n);
    std::vector<BlockId> destinations(order.begin() + n, order.begin() + 2 * n);
    if (n > 1) sources[0] = -1;
    if (n > 2) destinations[1] = -1;
    std::vector<Bytes> want = caches.memory;
    for (std::size_t i = 0; i < sources.size(); ++i) {
      for (int t = 0; t < shape.page_size && sources[i] >= 0 && destinations[i] >= 0; ++t) {
        move_token(caches, want, sources[i] * shape.page_size + t,
                   destinations[i] * shape.page_size + t);
      }
    }
    cuda::copy_pages({caches.layers.data(), static_cast<std::int32_t>(caches.layers.size()),
                      sources.data(), destinations.data(), n},
                     nullptr);
    ASSERT_EQ(caches.memory, want);
  }
}

/// Elements of a page in the cache's own order: the dimension of the larger stride outside.
std::vector<std::size_t> page_elements(const cuda::PagedKv& kv) {
  std::vector<std::size_t> elements;
  const bool heads_outside =
      kv.page_size > 1 && kv.num_kv_heads > 1 && kv.head_stride > kv.token_stride;
  const int outer = heads_outside ? kv.num_kv_heads : kv.page_size;
  const int inner = heads_outside ? kv.page_size : kv.num_kv_heads;
  for (int i = 0; i < outer; ++i) {
    for (int j = 0; j < inner; ++j) {
      for (int d = 0; d < kv.head_dim; ++d) {
        elements.push_back(test::element(kv, heads_outside ? j : i, heads_outside ? i : j, d));
      }
    }
  }
  return elements;
}

/// Host memory as swap_pages must leave it: everything copied element by element.
Bytes swapped_out(const Caches& caches, const std::vector<BlockId>& pages, Bytes host,
                  std::size_t host_offset) {
  const cuda::PagedKv& kv = caches.shape();
  const std::vector<std::size_t> elements = page_elements(kv);
  std::size_t at = host_offset;
  for (std::size_t l = 0; l < caches.layers.size(); ++l) {
    for (const BlockId page : pages) {
      for (std::size_t i = 0; i < 2; ++i) {
        for (const std::size_t e : elements) {
          const auto from = static_cast<std::size_t>(page * kv.page_stride) + e;
          if (page >= 0) {
            std::memcpy(&host[at], &caches.memory[2 * l + i][caches.offset + from * caches.size()],
                        caches.size());
          }
          at += caches.size();
        }
      }
    }
  }
  EXPECT_EQ(at, host.size());
  return host;
}

TEST(SwapPages, OutAndBackIntoOtherPages) {
  Random random(4);
  for (int round = 0; round < 120; ++round) {
    SCOPED_TRACE(round);
    const cuda::PagedKv shape = test::random_shape(random, kHeadDims);
    Caches caches = test::make_caches(random, shape, random.integer(1, 3), 8 * shape.page_size);
    const auto num_layers = static_cast<std::int32_t>(caches.layers.size());
    const std::vector<int> order = test::shuffled(random, caches.num_pages);
    const int n = random.integer(1, caches.num_pages / 2);
    std::vector<BlockId> out(order.begin(), order.begin() + n);
    std::vector<BlockId> in(order.begin() + n, order.begin() + 2 * n);
    if (n > 1) out[0] = in[0] = -1;
    const std::size_t offset = random.integer(0, 2) == 0 ? caches.size() : 0;
    const std::size_t page_bytes = page_elements(shape).size() * caches.size();
    Bytes host = test::random_bytes(
        random, offset + caches.layers.size() * static_cast<std::size_t>(n) * 2 * page_bytes);
    const Bytes want_host = swapped_out(caches, out, host, offset);
    std::vector<Bytes> want = caches.memory;
    cuda::SwapPages p{caches.layers.data(), num_layers, out.data(), n, host.data() + offset, true};
    cuda::swap_pages(p, nullptr);
    ASSERT_EQ(host, want_host);
    ASSERT_EQ(caches.memory, want);
    for (std::size_t i = n > 1 ? 1 : 0; i < out.size(); ++i) {
      for (int t = 0; t < shape.page_size; ++t) {
        move_token(caches, want, out[i] * shape.page_size + t, in[i] * shape.page_size + t);
      }
    }
    p.pages = in.data();
    p.to_host = false;
    cuda::swap_pages(p, nullptr);
    ASSERT_EQ(caches.memory, want);
    ASSERT_EQ(host, want_host);
  }
}

TEST(KvOperations, RefuseWhatIsWrong) {
  Random random(5);
  cuda::PagedKv shape;
  shape.num_kv_heads = 2;
  shape.head_dim = 8;
  Caches caches = test::make_caches(random, shape, 2, 32);
  const std::vector<Bytes> old = caches.memory;
  const std::vector<BlockId> ids = {0, 1};
  const cuda::MoveKv move{caches.layers.data(), 2, ids.data(), ids.data(), nullptr, 2, 1};
  const cuda::CopyPages copy{caches.layers.data(), 2, ids.data(), ids.data(), 1};
  const cuda::SwapPages swap{caches.layers.data(), 2, ids.data(), 1, caches.memory[0].data(), true};
  const auto moved = [&](const std::string& text, const auto& change) {
    cuda::MoveKv p = move;
    change(p);
    test::expect_refused("move_kv: " + text, [&] { cuda::move_kv(p, nullptr); });
  };
  moved("num_moves is -2; allowed: at least 0", [](cuda::MoveKv& p) { p.num_moves = -2; });
  moved("num_groups is 2; allowed: 1 to 1", [](cuda::MoveKv& p) { p.num_groups = 2; });
  moved("num_layers is 0; allowed: 1 to 128", [](cuda::MoveKv& p) { p.num_layers = 0; });
  moved("num_layers is 129", [](cuda::MoveKv& p) { p.num_layers = 129; });
  moved("layers is null; allowed: host memory", [](cuda::MoveKv& p) { p.layers = nullptr; });
  moved("sources is null", [](cuda::MoveKv& p) { p.sources = nullptr; });
  moved("destinations is null", [](cuda::MoveKv& p) { p.destinations = nullptr; });
  std::vector<cuda::PagedKv> uneven = caches.layers;
  uneven[1].head_dim = 6;
  moved("layers[1] is bfloat16, page_size 16, num_kv_heads 2, head_dim 6",
        [&](cuda::MoveKv& p) { p.layers = uneven.data(); });
  uneven = caches.layers;
  uneven[1].v = nullptr;
  moved("layers[1].v is null", [&](cuda::MoveKv& p) { p.layers = uneven.data(); });
  const auto copied = [&](const std::string& text, const auto& change) {
    cuda::CopyPages p = copy;
    change(p);
    test::expect_refused("copy_pages: " + text, [&] { cuda::copy_pages(p, nullptr); });
  };
  copied("num_pages is -1; allowed: at least 0", [](cuda::CopyPages& p) { p.num_pages = -1; });
  copied("sources is null", [](cuda::CopyPages& p) { p.sources = nullptr; });
  copied("destinations is null", [](cuda::CopyPages& p) { p.destinations = nullptr; });
  const auto swapped = [&](const std::string& text, const auto& change) {
    cuda::SwapPages p = swap;
    change(p);
    test::expect_refused("swap_pages: " + text, [&] { cuda::swap_pages(p, nullptr); });
  };
  swapped("pages is null", [](cuda::SwapPages& p) { p.pages = nullptr; });
  swapped("host is null; allowed: page-locked host memory",
          [](cuda::SwapPages& p) { p.host = nullptr; });
  EXPECT_EQ(caches.memory, old);
}

}  // namespace
}  // namespace smartspec
