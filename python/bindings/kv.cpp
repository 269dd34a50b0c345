// SPDX-FileCopyrightText: The SmartSpec authors
// SPDX-License-Identifier: Apache-2.0
#include "smartspec/kv_cache.hpp"
#include "views.hpp"

namespace smartspec::python {

namespace {

using Moves = std::vector<std::pair<SlotId, SlotId>>;

Moves pairs(const std::vector<KvMove>& moves) {
  Moves out;
  out.reserve(moves.size());
  for (const KvMove& move : moves) out.emplace_back(move.source, move.destination);
  return out;
}

std::optional<Moves> reserve(KvCache& cache, SequenceId sequence, std::int32_t num_slots) {
  std::vector<KvMove> copies;
  if (!cache.reserve(sequence, num_slots, copies)) return std::nullopt;
  return pairs(copies);
}

Moves commit(KvCache& cache, SequenceId sequence, const std::vector<std::int32_t>& path,
             const TokenIds& tokens) {
  std::vector<KvMove> moves;
  cache.commit(sequence, path, tokens.ids, moves);
  return pairs(moves);
}

}  // namespace

void init_kv(py::module_& m) {
  py::class_<KvCacheStats>(m, "KvCacheStats")
      .def_readonly("num_blocks", &KvCacheStats::num_blocks)
      .def_readonly("num_free", &KvCacheStats::num_free)
      .def_readonly("num_cached", &KvCacheStats::num_cached)
      .def_readonly("prefix_queries", &KvCacheStats::prefix_queries)
      .def_readonly("prefix_hits", &KvCacheStats::prefix_hits)
      .def_readonly("evictions", &KvCacheStats::evictions);

  py::class_<KvCache>(m, "KvCache",
                      "Bookkeeping of a paged KV cache: says which slots to write, read and copy. "
                      "Holds no tensors. Moves are (source slot, destination slot).")
      .def(py::init([](std::int32_t num_blocks, std::int32_t block_size, bool enable_prefix_caching,
                       std::uint64_t hash_seed) {
             return KvCache(KvCacheOptions{.num_blocks = num_blocks,
                                           .block_size = block_size,
                                           .enable_prefix_caching = enable_prefix_caching,
                                           .hash_seed = hash_seed});
           }),
           py::arg("num_blocks"), py::arg("block_size") = 16,
           py::arg("enable_prefix_caching") = true, py::arg("hash_seed") = 0)
      .def("add_sequence", &KvCache::add_sequence, py::arg("cache_salt") = 0)
      .def(
          "match_prefix",
          [](KvCache& cache, SequenceId sequence, const TokenIds& tokens) {
            return cache.match_prefix(sequence, tokens.ids);
          },
          py::arg("sequence"), py::arg("tokens"), "The verified length after attaching.")
      .def("fork", &KvCache::fork, py::arg("sequence"), py::arg("length"))
      .def("reserve", &reserve, py::arg("sequence"), py::arg("num_slots"),
           "Copies to perform first, or None when the pool is exhausted (nothing changed).")
      .def("commit", &commit, py::arg("sequence"), py::arg("path"), py::arg("tokens"),
           "Keeps the reserved offsets in `path`; returns the moves that make them contiguous.")
      .def("rollback", &KvCache::rollback, py::arg("sequence"))
      .def("truncate", &KvCache::truncate, py::arg("sequence"), py::arg("length"))
      .def("remove_sequence", &KvCache::remove_sequence, py::arg("sequence"))
      .def("verified_length", &KvCache::verified_length, py::arg("sequence"))
      .def("reserved", &KvCache::reserved, py::arg("sequence"))
      .def(
          "block_table",
          [](const KvCache& cache, SequenceId sequence) {
            const auto table = cache.block_table(sequence);
            return py::array_t<BlockId>(static_cast<py::ssize_t>(table.size()), table.data());
          },
          py::arg("sequence"))
      .def("slot", &KvCache::slot, py::arg("sequence"), py::arg("index"))
      .def("blocks_needed", &KvCache::blocks_needed, py::arg("sequence"), py::arg("num_slots"))
      .def_property_readonly("num_sequences", &KvCache::num_sequences)
      .def("stats", &KvCache::stats)
      .def("clear_prefix_cache", &KvCache::clear_prefix_cache)
      .def("check_integrity", &KvCache::check_integrity, "Empty when sound.");
}

}  // namespace smartspec::python
