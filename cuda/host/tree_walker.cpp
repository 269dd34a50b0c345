// SPDX-FileCopyrightText: The SmartSpec authors
// SPDX-License-Identifier: Apache-2.0
#include "host/tree_walker.hpp"

#include <algorithm>
#include <cstring>

#include "host/runtime.hpp"

namespace smartspec::cuda {
namespace {

/// Lays arrays out one behind the other and tells the Verify where they are, once that is known.
class Packer {
 public:
  Packer(std::vector<std::byte>& memory, std::span<const WalkSequence> sequences)
      : memory_(memory), sequences_(sequences) {
    memory_.clear();
  }

  /// One value of each sequence.
  template <class T, class Get>
  void each(const T*& field, Get get) {
    begin(field);
    for (const WalkSequence& sequence : sequences_) push(static_cast<T>(get(sequence)));
  }
  /// One field of each sequence's draws.
  template <class T>
  void draws(const T*& field, T DrawState::* member) {
    each(field, [&](const WalkSequence& sequence) { return sequence.draws->*member; });
  }
  /// A range of each sequence, one behind the other.
  template <class T, class Get>
  void ranges(const T*& field, Get get) {
    begin(field);
    for (const WalkSequence& sequence : sequences_) {
      for (const T value : get(sequence)) push(value);
    }
  }
  /// Where those ranges begin and end: [sequences + 1].
  template <class Get>
  void offsets(const std::int32_t*& field, Get get) {
    begin(field);
    std::int32_t sum = 0;
    push(sum);
    for (const WalkSequence& sequence : sequences_) {
      push(sum += static_cast<std::int32_t>(std::ssize(get(sequence))));
    }
  }
  void bind(const std::byte* base) const {
    for (const Array& array : arrays_) {
      const std::byte* address = base + array.offset;
      std::memcpy(array.field, &address, sizeof address);
    }
  }

 private:
  struct Array {
    void* field;
    std::size_t offset;
  };

  template <class T>
  void begin(const T*& field) {
    constexpr std::size_t kAlignment = 16;
    memory_.resize((memory_.size() + kAlignment - 1) / kAlignment * kAlignment);
    arrays_.push_back({static_cast<void*>(&field), memory_.size()});
  }
  template <class T>
  void push(T value) {
    memory_.resize(memory_.size() + sizeof value);
    std::memcpy(memory_.data() + memory_.size() - sizeof value, &value, sizeof value);
  }

  std::vector<std::byte>& memory_;
  std::span<const WalkSequence> sequences_;
  std::vector<Array> arrays_;
};

const auto kNodes = [](const WalkSequence& s) { return s.tokens; };
const auto kParents = [](const WalkSequence& s) { return s.parents; };
const auto kCounts = [](const WalkSequence& s) { return std::span(s.draws->count_tokens); };

bool edits(const WalkSequence& s) {
  const DrawState& d = *s.draws;
  return !d.count_tokens.empty() || d.repetition_penalty != 1.0F || d.frequency_penalty != 0.0F ||
         d.presence_penalty != 0.0F;
}

}  // namespace

void TreeWalker::upload_inputs(std::span<const WalkSequence> sequences, Verify& v, Staging& staging,
                               CUstream_st* stream) {
  Packer packer(host_, sequences);
  packer.draws(v.seeds, &DrawState::seed);
  packer.draws(v.positions, &DrawState::position);
  packer.each(v.logits_offsets, [](const WalkSequence& s) { return s.first_logits; });
  packer.offsets(v.node_offsets, kNodes);
  packer.ranges(v.node_tokens, kNodes);
  packer.ranges(v.parents, kParents);
  packer.draws(v.temperature, &DrawState::temperature);
  packer.draws(v.top_k, &DrawState::top_k);
  packer.draws(v.top_p, &DrawState::top_p);
  packer.draws(v.min_p, &DrawState::min_p);
  // Only then: kernels that count tokens take more shared memory.
  if (std::ranges::any_of(sequences, edits)) {
    packer.draws(v.repetition_penalty, &DrawState::repetition_penalty);
    packer.draws(v.frequency_penalty, &DrawState::frequency_penalty);
    packer.draws(v.presence_penalty, &DrawState::presence_penalty);
    packer.offsets(v.count_offsets, kCounts);
    packer.ranges(v.count_tokens, kCounts);
    packer.ranges(v.output_counts,
                  [](const WalkSequence& s) -> const auto& { return s.draws->output_counts; });
    packer.ranges(v.count_bias,
                  [](const WalkSequence& s) -> const auto& { return s.draws->count_bias; });
  }
  reserve_buffer(device_, host_.size(), stream);
  staging.upload(device_.data(), host_.data(), host_.size(), stream);
  packer.bind(device_.as<std::byte>());
}

void TreeWalker::take_results(const WalkParams& params, const Verify& v, CUstream_st* stream) {
  const std::size_t count = params.sequences.size();
  const auto stride = static_cast<std::size_t>(v.path_stride);
  const std::size_t bytes = count * (2 + stride) * sizeof(std::int32_t);
  if (host_results_.size() < bytes) {
    host_results_ = Buffer();
    host_results_ = {allocate_pinned(2 * bytes), 2 * bytes, free_pinned};
  }
  copy(host_results_.data(), results_.data(), bytes, stream);
  synchronize(stream);
  const auto* accepted = host_results_.as<const std::int32_t>();
  const std::int32_t* status = accepted + count;
  const TokenId* tokens = status + count;
  for (std::size_t i = 0; i < count; ++i) {
    params.drawn[i].clear();
    if (status[i] != 0) continue;
    const TokenId* first = tokens + i * stride;
    params.drawn[i].assign(first, first + accepted[i] + 1);
  }
}

void TreeWalker::run(const WalkParams& params, Staging& staging, CUstream_st* stream) {
  const std::size_t count = params.sequences.size();
  if (count == 0) return;
  std::size_t most = 0;
  for (const WalkSequence& s : params.sequences) most = std::max(most, s.tokens.size());

  Verify v;
  v.rule = VerifyRule::kTarget;
  v.num_sequences = static_cast<std::int32_t>(count);
  v.vocab_size = params.vocab_size;
  v.logits = params.logits;
  v.dtype = DType::kFloat32;
  v.logits_stride = params.vocab_size;
  v.path_stride = static_cast<std::int64_t>(most) + 1;
  upload_inputs(params.sequences, v, staging, stream);

  const std::size_t paths = count * (most + 1);
  reserve_buffer(results_, (2 * count + 2 * paths) * sizeof(std::int32_t), stream);
  v.num_accepted = results_.as<std::int32_t>();
  v.status = v.num_accepted + count;
  v.tokens = v.status + count;
  v.path = v.tokens + paths;
  const std::size_t workspace = verify_workspace_bytes(
      v.rule, v.num_sequences, static_cast<std::int32_t>(most), v.vocab_size);
  reserve_buffer(workspace_, workspace, stream);
  cuda::verify(v, workspace_.data(), workspace_.size(), stream);
  take_results(params, v, stream);
  num_walked_ += static_cast<std::int64_t>(count);
}

}  // namespace smartspec::cuda
