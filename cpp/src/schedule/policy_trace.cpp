// SPDX-FileCopyrightText: The SmartSpec authors
// SPDX-License-Identifier: Apache-2.0
#include "smartspec/policy_trace.hpp"

#include <algorithm>
#include <fstream>
#include <stdexcept>
#include <unordered_map>
#include <utility>

#include "schedule/trace_format.hpp"

namespace smartspec {

namespace {

using trace::Kind;

// The structured bindings below fail to compile when a struct gets a field that is not recorded.

void put_load(trace::Writer& out, const StepLoad& load) {
  const auto& [num_passes, num_tokens, num_sequences, num_logits, kv_tokens, pairs] = load;
  out.put(num_passes);
  out.put(num_tokens);
  out.put(num_sequences);
  out.put(num_logits);
  out.put(kv_tokens);
  out.put(pairs);
}

void put_request(trace::Writer& out, const LengthRequest& request) {
  const auto& [id, num_tokens, max_depth, num_drafted, num_accepted, group, num_output_tokens,
               decode_seconds, block_room, backlog, num_remaining, control] = request;
  const auto& [enabled, min_tokens, max_tokens, proposer, tpot_target] = control;
  out.put(id);
  out.put(num_tokens);
  out.put(max_depth);
  out.put(num_drafted);
  out.put(num_accepted);
  out.put(group);
  out.put(num_output_tokens);
  out.put(decode_seconds);
  out.put(block_room);
  out.put(backlog);
  out.put(num_remaining);
  out.put(enabled);
  out.put(min_tokens);
  out.put(max_tokens);
  out.put(proposer);
  out.put(tpot_target);
}

void put_context(trace::Writer& out, const StepView& step,
                 std::span<const LengthRequest> requests) {
  const auto& [now, base, num_decodes, token_budget, block_size, free_blocks, proposers] = step;
  static_cast<void>(proposers);
  out.put(now);
  put_load(out, base);
  out.put(num_decodes);
  out.put(token_budget);
  out.put(block_size);
  out.put(free_blocks);
  out.put_count(requests.size());
  for (const LengthRequest& request : requests) put_request(out, request);
}

void put_proposers(trace::Writer& out, std::span<const ProposerView> proposers) {
  out.put_count(proposers.size());
  for (const auto& [name, pays_per_depth] : proposers) {
    out.put(pays_per_depth);
    out.put(name);
  }
}

void put_choices(trace::Writer& out, std::span<const DraftChoice> choices) {
  out.put_count(choices.size());
  for (const auto& [proposer, depth, min_survival, claims] : choices) {
    out.put(proposer);
    out.put(depth);
    out.put(min_survival);
    out.put(claims.offset);
    out.put(claims.scale);
  }
}

void put_drafts(trace::Writer& out, std::span<const DraftWork> drafts) {
  out.put_count(drafts.size());
  for (const auto& [proposer, load, seconds] : drafts) {
    out.put(proposer);
    put_load(out, load);
    out.put(seconds);
  }
}

/// Numbers for the tokens of running requests, in order of appearance.
class TokenNumbers {
 public:
  using Map = std::unordered_map<TokenId, TokenId>;
  Map& of(RequestId id) { return requests_[id]; }
  void forget(RequestId id) { requests_.erase(id); }
  void clear() { requests_.clear(); }

 private:
  std::unordered_map<RequestId, Map> requests_;
};

TokenId number_of(TokenNumbers::Map& numbers, TokenId token) {
  return numbers.try_emplace(token, static_cast<TokenId>(numbers.size())).first->second;
}

/// `tree` null is kept apart from empty. Depths follow from the parents.
void put_tree(trace::Writer& out, const TokenTree* tree, TokenNumbers::Map& numbers) {
  if (tree == nullptr) {
    out.put(static_cast<std::uint8_t>(trace::TreeForm::kNull));
    return;
  }
  const std::size_t size = tree->tokens.size();
  bool chain = true;
  for (std::size_t i = 0; i < size; ++i) {
    chain = chain && tree->parents[i] == static_cast<std::int32_t>(i) - 1;
  }
  out.put(static_cast<std::uint8_t>(chain ? trace::TreeForm::kChain : trace::TreeForm::kTree));
  out.put_count(size);
  for (const TokenId token : tree->tokens) out.put(number_of(numbers, token));
  if (!chain) {
    for (const std::int32_t parent : tree->parents) out.put(parent);
  }
  for (const float survival : tree->survival) out.put(survival);
}

bool is_prefix(const TokenTree& part, const TokenTree& whole) {
  const auto bits = [](float value) { return trace::bits_of(value); };
  return part.size() <= whole.size() &&
         std::equal(part.tokens.begin(), part.tokens.end(), whole.tokens.begin()) &&
         std::equal(part.parents.begin(), part.parents.end(), whole.parents.begin()) &&
         std::equal(part.survival.begin(), part.survival.end(), whole.survival.begin(),
                    [&](float a, float b) { return bits(a) == bits(b); });
}

bool sound_lengths(const TokenTree& tree) {
  const std::size_t size = tree.tokens.size();
  return tree.parents.size() == size && tree.depths.size() == size && tree.survival.size() == size;
}

class RecordingPolicy final : public LengthPolicy {
 public:
  RecordingPolicy(std::shared_ptr<LengthPolicy> policy, const std::filesystem::path& path)
      : policy_(std::move(policy)), path_(path.string()) {
    file_.open(path, std::ios::binary | std::ios::trunc);
    if (!file_) throw Error("cannot write the policy trace " + path_);
    for (const char c : trace::kMagic) out_.bytes.push_back(static_cast<std::byte>(c));
    out_.put(trace::kVersion);
    out_.put(policy_->name());
    flush();
    if (!error_.empty()) throw Error(error_);
  }
  ~RecordingPolicy() override {
    try {
      static_cast<void>(close());
    } catch (...) {  // a destructor has nobody to tell
    }
  }

  [[nodiscard]] std::string_view name() const override { return policy_->name(); }
  [[nodiscard]] std::int32_t max_depth() const override { return policy_->max_depth(); }
  [[nodiscard]] PolicyStats stats() const override { return policy_->stats(); }

  std::int32_t max_prefill_tokens(const StepView& step, std::span<const LengthRequest> requests,
                                  std::int32_t wanted) override;
  void plan(const StepView& step, std::span<const LengthRequest> requests,
            std::span<const Candidate> candidates, std::span<DraftChoice> choices) override;
  void allocate(const StepView& step, std::span<const LengthRequest> requests,
                std::span<const DraftChoice> choices, std::span<const DraftWork> drafts,
                std::span<TokenTree* const> trees) override;
  void observe(const StepOutcome& outcome) override;
  void finish(RequestId id) override;

  std::string close();

 private:
  /// A record being written: dropped unless finished, as when the policy throws.
  class Record {
   public:
    Record(RecordingPolicy& owner, Kind kind) : owner_(owner), start_(owner.out_.bytes.size()) {
      owner_.out_.put(static_cast<std::uint8_t>(kind));
      owner_.out_.put(std::uint32_t{0});
    }
    ~Record() {
      if (!finished_) owner_.out_.bytes.resize(start_);
    }
    Record(const Record&) = delete;
    Record& operator=(const Record&) = delete;
    void finish();

   private:
    RecordingPolicy& owner_;
    std::size_t start_;
    bool finished_ = false;
  };

  [[nodiscard]] bool open() const noexcept { return file_.is_open(); }
  void put_changed(Kind kind, const trace::Writer& now, trace::Writer& before);
  void put_context_if_changed(const StepView& step, std::span<const LengthRequest> requests);
  void flush();
  void stop(const std::string& error);

  std::shared_ptr<LengthPolicy> policy_;
  std::string path_;
  std::ofstream file_;
  std::string error_;
  trace::Writer out_;  // not written to the file yet
  std::uint64_t num_records_ = 0;
  TokenNumbers numbers_;
  trace::Writer scratch_;
  trace::Writer proposers_;          // as last written
  trace::Writer context_;            // as last written
  std::vector<TokenTree> unpruned_;  // [trees] as they were shown; capacity is kept
};

void RecordingPolicy::Record::finish() {
  trace::Writer& out = owner_.out_;
  const std::size_t payload = out.bytes.size() - start_ - 5;
  if (payload > std::numeric_limits<std::uint32_t>::max()) {
    owner_.stop("a record of the policy trace " + owner_.path_ + " is larger than 4 GiB");
    return;
  }
  out.put_at(start_ + 1, static_cast<std::uint32_t>(payload));
  out.put(trace::checksum(std::span(out.bytes).subspan(start_)));
  finished_ = true;
  ++owner_.num_records_;
  constexpr std::size_t kFlushBytes = std::size_t{1} << 20U;
  if (out.bytes.size() >= kFlushBytes) owner_.flush();
}

void RecordingPolicy::stop(const std::string& error) {
  if (error_.empty()) error_ = error;
  file_.close();
  numbers_.clear();
}

void RecordingPolicy::flush() {
  file_.write(reinterpret_cast<const char*>(out_.bytes.data()),
              static_cast<std::streamsize>(out_.bytes.size()));
  out_.bytes.clear();
  if (!file_) stop("cannot write the policy trace " + path_);
}

std::string RecordingPolicy::close() {
  if (!open()) return error_;
  Record record(*this, Kind::kEnd);
  out_.put(num_records_);
  record.finish();
  if (open()) flush();
  if (open()) {
    file_.close();
    if (!file_) stop("cannot write the policy trace " + path_);
  }
  numbers_.clear();
  return error_;
}

void RecordingPolicy::put_changed(Kind kind, const trace::Writer& now, trace::Writer& before) {
  if (now.bytes == before.bytes) return;
  before.bytes = now.bytes;
  Record record(*this, kind);
  out_.bytes.insert(out_.bytes.end(), now.bytes.begin(), now.bytes.end());
  record.finish();
}

void RecordingPolicy::put_context_if_changed(const StepView& step,
                                             std::span<const LengthRequest> requests) {
  scratch_.bytes.clear();
  put_proposers(scratch_, step.proposers);
  if (scratch_.bytes != proposers_.bytes) context_.bytes.clear();  // it speaks of the proposers
  put_changed(Kind::kProposers, scratch_, proposers_);
  if (!open()) return;
  scratch_.bytes.clear();
  put_context(scratch_, step, requests);
  put_changed(Kind::kContext, scratch_, context_);
}

std::int32_t RecordingPolicy::max_prefill_tokens(const StepView& step,
                                                 std::span<const LengthRequest> requests,
                                                 std::int32_t wanted) {
  if (open()) put_context_if_changed(step, requests);
  if (!open()) return policy_->max_prefill_tokens(step, requests, wanted);
  Record record(*this, Kind::kPrefill);
  const std::int32_t answer = policy_->max_prefill_tokens(step, requests, wanted);
  out_.put(wanted);
  out_.put(answer);
  record.finish();
  return answer;
}

void RecordingPolicy::plan(const StepView& step, std::span<const LengthRequest> requests,
                           std::span<const Candidate> candidates, std::span<DraftChoice> choices) {
  if (open()) put_context_if_changed(step, requests);
  if (!open()) return policy_->plan(step, requests, candidates, choices);
  Record record(*this, Kind::kPlan);
  out_.put_count(candidates.size());
  for (const auto& [request, proposer, tree] : candidates) {
    out_.put(request);
    out_.put(proposer);
    const bool known = request >= 0 && static_cast<std::size_t>(request) < requests.size();
    const bool sound = known && tree != nullptr && sound_lengths(*tree);
    put_tree(out_, sound ? tree : nullptr,
             numbers_.of(known ? requests[static_cast<std::size_t>(request)].id : -1));
  }
  policy_->plan(step, requests, candidates, choices);
  put_choices(out_, choices);
  record.finish();
}

void RecordingPolicy::allocate(const StepView& step, std::span<const LengthRequest> requests,
                               std::span<const DraftChoice> choices,
                               std::span<const DraftWork> drafts,
                               std::span<TokenTree* const> trees) {
  if (open()) put_context_if_changed(step, requests);
  if (!open()) return policy_->allocate(step, requests, choices, drafts, trees);
  Record record(*this, Kind::kAllocate);
  put_choices(out_, choices);
  put_drafts(out_, drafts);
  out_.put_count(trees.size());
  if (unpruned_.size() < trees.size()) unpruned_.resize(trees.size());
  const auto id = [&](std::size_t i) { return i < requests.size() ? requests[i].id : -1; };
  for (std::size_t i = 0; i < trees.size(); ++i) {
    const bool sound = trees[i] != nullptr && sound_lengths(*trees[i]);
    unpruned_[i] = sound ? *trees[i] : TokenTree();
    put_tree(out_, sound ? trees[i] : nullptr, numbers_.of(id(i)));
  }
  policy_->allocate(step, requests, choices, drafts, trees);
  for (std::size_t i = 0; i < trees.size(); ++i) {
    const bool known = trees[i] != nullptr && sound_lengths(*trees[i]);
    const bool prefix = !known || is_prefix(*trees[i], unpruned_[i]);
    out_.put(static_cast<std::uint8_t>(prefix ? trace::Kept::kPrefix : trace::Kept::kOther));
    if (prefix) {
      out_.put_count(known ? trees[i]->tokens.size() : 0);
    } else {
      put_tree(out_, trees[i], numbers_.of(id(i)));
    }
  }
  record.finish();
}

void RecordingPolicy::observe(const StepOutcome& outcome) {
  if (!open()) return policy_->observe(outcome);
  Record record(*this, Kind::kObserve);
  const auto& [now, load, seconds, drafts, requests] = outcome;
  out_.put(now);
  put_load(out_, load);
  out_.put(seconds);
  put_drafts(out_, drafts);
  out_.put_count(requests.size());
  for (const auto& [id, num_verified, num_accepted, emitted] : requests) {
    out_.put(id);
    out_.put(num_verified);
    out_.put(num_accepted);
    out_.put_count(emitted.size());
    TokenNumbers::Map& numbers = numbers_.of(id);
    for (const TokenId token : emitted) out_.put(number_of(numbers, token));
  }
  policy_->observe(outcome);
  record.finish();
}

void RecordingPolicy::finish(RequestId id) {
  if (!open()) return policy_->finish(id);
  Record record(*this, Kind::kFinish);
  out_.put(id);
  policy_->finish(id);
  numbers_.forget(id);
  record.finish();
}

}  // namespace

std::shared_ptr<LengthPolicy> make_recording_policy(std::shared_ptr<LengthPolicy> policy,
                                                    const std::filesystem::path& path) {
  if (policy == nullptr) throw std::invalid_argument("policy to record must not be null");
  return std::make_shared<RecordingPolicy>(std::move(policy), path);
}

std::string finish_recording(LengthPolicy& policy) {
  auto* recording = dynamic_cast<RecordingPolicy*>(&policy);
  if (recording == nullptr) {
    throw std::invalid_argument("policy '" + std::string(policy.name()) +
                                "' does not record: it must come from make_recording_policy()");
  }
  return recording->close();
}

}  // namespace smartspec
