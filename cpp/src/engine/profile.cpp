// SPDX-FileCopyrightText: The SmartSpec authors
// SPDX-License-Identifier: Apache-2.0
#include "smartspec/profile.hpp"

#include <algorithm>
#include <chrono>
#include <numeric>
#include <random>
#include <stdexcept>
#include <string>
#include <string_view>
#include <utility>

#include "model/decoder.hpp"

namespace smartspec {
namespace {

using Clock = std::chrono::steady_clock;

void check_option(const char* field, double value, double least, double most) {
  if (!(value >= least && value <= most)) {
    throw std::invalid_argument(std::string(field) + " must be in [" + std::to_string(least) +
                                ", " + std::to_string(most) + "], got " + std::to_string(value));
  }
}

/// One request's part of a pass.
struct Lane {
  std::int32_t context = 0;
  std::int32_t num_causal = 0;
  std::int32_t num_drafts = 0;
};

struct Point {
  std::vector<Lane> lanes;
  StepLoad load{};
  std::vector<double> seconds;
};

StepLoad load_of(const std::vector<Lane>& lanes) {
  StepLoad load;
  for (const Lane& lane : lanes) {
    const std::int32_t rows = lane.num_causal + lane.num_drafts;
    load.num_tokens += rows;
    load.num_logits += 1 + lane.num_drafts;
    ++load.num_sequences;
    load.kv_tokens += lane.context + rows;
    // Row i attends to the context and the rows up to itself.
    load.attention_pairs += std::int64_t{rows} * lane.context + std::int64_t{rows} * (rows + 1) / 2;
  }
  return load;
}

class Profiler {
 public:
  Profiler(const std::shared_ptr<const Model>& model, const ProfileOptions& options);
  std::vector<CostSample> run();

 private:
  void add_decodes();
  void add_chunks();
  bool add(std::vector<Lane> lanes);
  [[nodiscard]] std::int32_t lane_blocks(std::int32_t tokens) const {
    return (tokens + options_.block_size - 1) / options_.block_size;
  }
  void fill_cache();
  double measure(const Point& point);

  ProfileOptions options_;
  std::int32_t vocab_size_;
  std::int32_t num_blocks_;
  Decoder decoder_;
  std::mt19937_64 random_{1};
  std::vector<BlockId> blocks_;
  std::vector<std::int32_t> chain_;  // parents of a chain of draft nodes
  std::vector<Point> points_;
  ForwardBatch batch_;
};

ProfileOptions checked(ProfileOptions options, const Model& model) {
  check_option("max_num_seqs", options.max_num_seqs, 1, 4096);
  check_option("max_num_tokens", options.max_num_tokens, 1, 1 << 20);
  check_option("max_drafts", options.max_drafts, 0, 256);
  check_option("max_context", options.max_context, 1, 1 << 24);
  check_option("block_size", options.block_size, 16, 4096);
  check_option("seconds", options.seconds, 0, 86400);
  // Rows behind the context take positions as well.
  const std::int32_t longest = model.config().max_position_embeddings;
  const std::int32_t room = std::min(options.max_drafts + 1, longest - 1);
  options.max_context = std::max(std::min(options.max_context, longest) - room, 1);
  return options;
}

std::int32_t affordable_blocks(const ProfileOptions& options, const Model& model) {
  const std::int64_t block_bytes = model.bytes_per_kv_token(model.dtype()) * options.block_size;
  check_option("kv_memory_bytes", static_cast<double>(options.kv_memory_bytes),
               static_cast<double>(block_bytes), 1e15);
  const std::int64_t wanted =
      std::int64_t{options.max_num_seqs} *
          ((options.max_context + options.max_drafts + 1) / options.block_size + 1) +
      options.max_num_tokens / options.block_size + 1;
  return static_cast<std::int32_t>(std::min<std::int64_t>(
      {options.kv_memory_bytes / block_bytes, wanted, std::int64_t{1} << 24}));
}

Profiler::Profiler(const std::shared_ptr<const Model>& model, const ProfileOptions& options)
    : options_(checked(options, *model)),
      vocab_size_(model->config().vocab_size),
      num_blocks_(affordable_blocks(options_, *model)),
      decoder_(model, num_blocks_, options_.block_size, model->dtype(),
               model->config().max_position_embeddings),
      blocks_(static_cast<std::size_t>(num_blocks_)),
      chain_(static_cast<std::size_t>(options_.max_drafts)) {
  // Blocks of a sequence do not lie together in an engine that has run for a while.
  std::iota(blocks_.begin(), blocks_.end(), 0);
  std::shuffle(blocks_.begin(), blocks_.end(), random_);
  std::iota(chain_.begin(), chain_.end(), -1);
  add_decodes();
  add_chunks();
  // In random order, so that running out of time leaves some of everything.
  std::shuffle(points_.begin(), points_.end(), random_);
}

/// False when the pass exceeds rows or KV memory.
bool Profiler::add(std::vector<Lane> lanes) {
  const StepLoad load = load_of(lanes);
  std::int64_t blocks = 0;
  const std::int32_t longest = decoder_.model().config().max_position_embeddings;
  for (const Lane& lane : lanes) {
    const std::int32_t tokens = lane.context + lane.num_causal + lane.num_drafts;
    if (tokens > longest) return false;
    blocks += lane_blocks(tokens);
  }
  if (load.num_tokens > options_.max_num_tokens || blocks > num_blocks_) return false;
  points_.push_back({std::move(lanes), load, {}});
  return true;
}

std::vector<std::int32_t> sizes_up_to(std::int32_t most, std::int32_t step) {
  std::vector<std::int32_t> sizes;
  for (std::int32_t size = 1; size < most; size *= step) sizes.push_back(size);
  sizes.push_back(most);
  return sizes;
}

void Profiler::add_decodes() {
  add({{.context = 0, .num_causal = 1}});  // fits whatever the options are
  for (const std::int32_t batch : sizes_up_to(options_.max_num_seqs, 2)) {
    for (std::int32_t drafts = 0; drafts <= options_.max_drafts;
         drafts += drafts < 4 ? 1 : (drafts + 1) / 2) {
      for (const std::int32_t wanted : {16, 256, 1024, options_.max_context}) {
        const std::int32_t longest = std::min(wanted, options_.max_context);
        if (longest < wanted && batch > 1) continue;
        std::vector<Lane> lanes;
        for (std::int32_t i = 0; i < batch; ++i) {
          const auto spread = static_cast<std::int32_t>(random_() % 64);
          lanes.push_back(
              {.context = std::max(longest - spread, 1), .num_causal = 1, .num_drafts = drafts});
        }
        add(std::move(lanes));
      }
    }
  }
}

void Profiler::add_chunks() {
  const std::int32_t longest = decoder_.model().config().max_position_embeddings;
  const std::int32_t most_rows = std::min(options_.max_num_tokens, longest);
  for (std::int32_t rows = 8; rows <= most_rows; rows += rows < 64 ? 8 : rows / 4) {
    const auto room = static_cast<std::uint64_t>(std::min(768, longest - rows));
    const std::int32_t context =
        rows % 3 == 0 ? 0 : static_cast<std::int32_t>(random_() % (room + 1));
    const Lane chunk{.context = context, .num_causal = rows};
    add({chunk});
    for (const std::int32_t batch : {4, 12, 28}) {
      if (batch >= options_.max_num_seqs || (rows + batch) % 2 != 0) continue;
      std::vector<Lane> lanes{chunk};
      const auto drafts = static_cast<std::int32_t>(
          random_() % static_cast<std::uint64_t>(std::min(options_.max_drafts, 4) + 1));
      for (std::int32_t i = 0; i < batch; ++i) {
        const auto most = static_cast<std::uint64_t>(options_.max_context);
        lanes.push_back({.context = 1 + static_cast<std::int32_t>(random_() % most),
                         .num_causal = 1,
                         .num_drafts = drafts});
      }
      add(std::move(lanes));
    }
  }
}

/// Gives every slot the keys and values of a real token: memory nobody wrote is not there yet and
/// reads faster than memory.
void Profiler::fill_cache() {
  Point first;
  first.lanes = {{.context = 0, .num_causal = 1}};
  measure(first);
  const std::int32_t source = blocks_[0] * options_.block_size;
  std::vector<SlotId> sources;
  std::vector<SlotId> destinations;
  for (std::int32_t slot = 0; slot < num_blocks_ * options_.block_size; ++slot) {
    if (slot == source) continue;
    sources.push_back(source);
    destinations.push_back(slot);
  }
  decoder_.move_kv(sources, destinations);
}

double Profiler::measure(const Point& point) {
  batch_.clear();
  std::size_t used = 0;
  for (const Lane& lane : point.lanes) {
    const std::int32_t rows = lane.num_causal + lane.num_drafts;
    const auto count = static_cast<std::size_t>(lane_blocks(lane.context + rows));
    const auto table = std::span<const BlockId>(blocks_).subspan(used, count);
    used += count;
    batch_.sequences.push_back({.first_row = batch_.num_rows(),
                                .context_len = lane.context,
                                .num_causal = lane.num_causal,
                                .num_tree = lane.num_drafts,
                                .tree_start = 0,
                                .tree_parents = std::span<const std::int32_t>(chain_).first(
                                    static_cast<std::size_t>(lane.num_drafts)),
                                .block_table = table});
    for (std::int32_t i = 0; i < rows; ++i) {
      const std::int32_t position = lane.context + i;
      const BlockId block = table[static_cast<std::size_t>(position / options_.block_size)];
      if (i + 1 >= lane.num_causal) batch_.logits_rows.push_back(batch_.num_rows());
      batch_.tokens.push_back(
          static_cast<TokenId>(random_() % static_cast<std::uint64_t>(vocab_size_)));
      batch_.positions.push_back(position);
      batch_.slots.push_back(block * options_.block_size + position % options_.block_size);
    }
  }
  const auto before = Clock::now();
  decoder_.forward(batch_);
  return std::chrono::duration<double>(Clock::now() - before).count();
}

std::vector<CostSample> Profiler::run() {
  const auto start = Clock::now();
  const auto spent = [&] { return std::chrono::duration<double>(Clock::now() - start).count(); };
  fill_cache();
  bool out_of_time = false;
  while (!out_of_time) {
    for (Point& point : points_) {
      point.seconds.push_back(measure(point));
      if (options_.progress) options_.progress(std::min(spent() / options_.seconds, 1.0));
      out_of_time = spent() >= options_.seconds;
      if (out_of_time) break;
    }
  }
  std::vector<CostSample> samples;
  for (Point& point : points_) {
    if (point.seconds.empty()) continue;
    // The lower quartile: whatever disturbs a pass, its first one and other processes, only adds.
    const auto quartile =
        point.seconds.begin() + static_cast<std::ptrdiff_t>((point.seconds.size() - 1) / 4);
    std::nth_element(point.seconds.begin(), quartile, point.seconds.end());
    samples.push_back({point.load, std::max(*quartile, 1e-9)});
  }
  return samples;
}

/// Reached by one core's matrix products, in operations per second.
double usual_flops(std::string_view isa, DType dtype) {
  if (isa == "avx512_bf16" && dtype == DType::kBFloat16) return 200e9;
  if (isa == "avx512_bf16" || isa == "avx512") return 80e9;
  if (isa == "avx2") return 40e9;
  return 4e9;
}

}  // namespace

std::vector<CostSample> profile_model(const std::shared_ptr<const Model>& model,
                                      const ProfileOptions& options) {
  if (model == nullptr) throw std::invalid_argument("model must not be null");
  return Profiler(model, options).run();
}

Roofline roofline_of(const Model& model, std::int32_t threads) {
  if (threads < 0) {
    throw std::invalid_argument("num_threads must be at least 0, got " + std::to_string(threads));
  }
  if (threads == 0) threads = std::max(num_threads(*model.runtime()), 1);
  const ModelConfig& config = model.config();
  const double table = static_cast<double>(config.vocab_size) * config.hidden_size;
  const auto parameters = static_cast<double>(model.num_parameters());
  const double layers = std::max(parameters - (config.tie_word_embeddings ? 1 : 2) * table, 0.0);
  Roofline roofline;
  roofline.weight_bytes = (layers + table) * static_cast<double>(size_of(model.dtype()));
  roofline.kv_bytes_per_token = static_cast<double>(model.bytes_per_kv_token(model.dtype()));
  roofline.flops_per_token = 2 * layers;
  roofline.flops_per_logit = 2 * table;
  roofline.flops_per_pair =
      4.0 * config.num_attention_heads * config.head_dim * config.num_hidden_layers;
  roofline.bytes_per_second = std::min(20e9 * threads, 80e9);  // cores share the memory
  roofline.flops_per_second = usual_flops(isa_name(*model.runtime()), model.dtype()) * threads;
  // Every layer wakes the threads a few times.
  roofline.overhead_seconds = 20e-6 + 15e-6 * config.num_hidden_layers;
  return roofline;
}

}  // namespace smartspec
