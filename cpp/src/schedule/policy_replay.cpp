// SPDX-FileCopyrightText: The SmartSpec authors
// SPDX-License-Identifier: Apache-2.0
#include "schedule/policy_replay.hpp"

#include <algorithm>
#include <limits>
#include <utility>

#include "core/mapped_file.hpp"
#include "schedule/trace_format.hpp"

namespace smartspec {

namespace {

using trace::Kind;
using trace::Reader;

// Bytes that one of them takes at least: bounds counts before anything is allocated for them.
constexpr std::size_t kProposerBytes = 5;
constexpr std::size_t kRequestBytes = 81;
constexpr std::size_t kCandidateBytes = 9;
constexpr std::size_t kChoiceBytes = 20;
constexpr std::size_t kDraftBytes = 44;
constexpr std::size_t kOutcomeBytes = 20;
constexpr std::int64_t kMostNodes = 1 << 28;  // of a request at one step
constexpr std::int64_t kMany = std::numeric_limits<std::int32_t>::max();

/// Of tokens, rows or blocks: sums of a few do not overflow.
std::int32_t get_number(Reader& in, const char* what) {
  constexpr std::int64_t kLargest = 1 << 28;
  return in.get_in<std::int32_t>(what, -kLargest, kLargest);
}

/// What is left of something, and may be without limit.
std::int32_t get_room(Reader& in, const char* what) {
  return in.get_in<std::int32_t>(what, -kMany, kMany);
}

StepLoad get_load(Reader& in) {
  StepLoad load;
  load.num_passes = get_number(in, "num_passes");
  load.num_tokens = get_number(in, "num_tokens");
  load.num_sequences = get_number(in, "num_sequences");
  load.num_logits = get_number(in, "num_logits");
  load.kv_tokens = in.get<std::int64_t>("kv_tokens");
  load.attention_pairs = in.get<std::int64_t>("attention_pairs");
  return load;
}

/// Within what LengthRequest promises: a policy may rely on it.
LengthRequest get_request(Reader& in, std::size_t num_proposers) {
  LengthRequest request;
  request.id = in.get<std::int64_t>("request id");
  request.num_tokens = get_number(in, "num_tokens");
  request.max_depth = in.get_in<std::int32_t>("max_depth", 0, kMany);
  request.num_drafted = in.get<std::int64_t>("num_drafted");
  request.num_accepted = in.get<std::int64_t>("num_accepted");
  request.group = get_number(in, "group");
  request.num_output_tokens = get_number(in, "num_output_tokens");
  request.decode_seconds = in.get<double>("decode_seconds");
  request.block_room = get_room(in, "block_room");
  request.backlog = get_number(in, "backlog");
  request.num_remaining = get_room(in, "num_remaining");
  SpeculationControl& control = request.control;
  control.enabled = in.get_bool("control.enabled");
  control.min_tokens = in.get_in<std::int32_t>("control.min_tokens", 0, kMaxTreeNodes);
  control.max_tokens = in.get_in<std::int32_t>("control.max_tokens", 0, kMaxTreeNodes);
  control.proposer =
      in.get_in<std::int32_t>("control.proposer", -1, static_cast<std::int64_t>(num_proposers) - 1);
  control.tpot_target = in.get<double>("control.tpot_target");
  return request;
}

/// False: null.
bool get_tree(Reader& in, TokenTree& tree) {
  tree.clear();
  const auto form = static_cast<trace::TreeForm>(in.get_in<std::uint8_t>("tree form", 0, 2));
  if (form == trace::TreeForm::kNull) return false;
  const bool chain = form == trace::TreeForm::kChain;
  const std::size_t size = in.get_count("tree size", chain ? 8 : 12);
  tree.tokens.resize(size);
  for (TokenId& token : tree.tokens) {
    token = in.get_in<TokenId>("token", 0, kMany);
  }
  tree.parents.resize(size);
  tree.depths.resize(size);
  for (std::size_t i = 0; i < size; ++i) {
    const auto before = static_cast<std::int64_t>(i) - 1;
    const std::int32_t parent =
        chain ? static_cast<std::int32_t>(before) : in.get_in<std::int32_t>("parent", -1, before);
    tree.parents[i] = parent;
    tree.depths[i] = parent < 0 ? 0 : tree.depths[static_cast<std::size_t>(parent)] + 1;
  }
  tree.survival.resize(size);
  for (float& survival : tree.survival) survival = in.get<float>("survival");
  return true;
}

bool same_choice(const DraftChoice& a, const DraftChoice& b) {
  return a.proposer == b.proposer && a.depth == b.depth &&
         trace::bits_of(a.min_survival) == trace::bits_of(b.min_survival) &&
         trace::bits_of(a.claims.offset) == trace::bits_of(b.claims.offset) &&
         trace::bits_of(a.claims.scale) == trace::bits_of(b.claims.scale);
}

class Replayer {
 public:
  Replayer(std::span<const std::byte> file, LengthPolicy& policy) : file_(file), policy_(policy) {}
  ReplayResult run();

 private:
  void header();
  /// False: it was the last one.
  bool record();
  void dispatch(Kind kind, Reader& in);
  void proposers(Reader& in);
  void context(Reader& in);
  void prefill(Reader& in);
  void plan(Reader& in);
  void allocate(Reader& in);
  void observe(Reader& in);

  std::vector<DraftChoice> get_choices(Reader& in);
  std::vector<DraftWork> get_drafts(Reader& in);
  void differs(std::int64_t step);
  void request_differs(std::size_t request);

  Reader file_;
  LengthPolicy& policy_;
  ReplayResult result_;
  std::uint64_t num_records_ = 0;
  std::vector<std::string> names_;
  std::vector<ProposerView> proposers_;
  bool has_context_ = false;
  StepView step_;
  std::vector<LengthRequest> requests_;
  std::vector<TokenTree> candidate_trees_;  // until the next plan, as in a live step
  std::vector<TokenTree> trees_;
  std::vector<bool> different_;  // [requests of the step] counted already
};

ReplayResult Replayer::run() {
  header();
  while (record()) {
  }
  if (file_.remaining() != 0) file_.fail("bytes behind the end record");
  result_.stats = policy_.stats();
  return std::move(result_);
}

void Replayer::header() {
  const auto magic = file_.take(trace::kMagic.size(), "magic");
  const bool fits = std::equal(magic.begin(), magic.end(), trace::kMagic.begin(),
                               [](std::byte a, char b) { return a == static_cast<std::byte>(b); });
  if (!fits) throw FormatError("not a policy trace: it must start with SSPTRACE");
  const auto version = file_.get<std::uint32_t>("version");
  if (version != trace::kVersion) {
    throw FormatError("policy trace version must be " + std::to_string(trace::kVersion) + ", got " +
                      std::to_string(version));
  }
  result_.recorded_policy = file_.get_text("name of the policy");
}

bool Replayer::record() {
  if (file_.remaining() == 0) file_.fail("cut off: the end record is missing");
  const std::size_t start = file_.offset();
  Reader framed = file_;
  const auto kind = framed.get<std::uint8_t>("record kind");
  const auto size = static_cast<std::size_t>(framed.get<std::uint32_t>("record size"));
  const auto payload = framed.take(size, "record");
  const auto covered = file_.take(size + 5, "record");
  if (file_.get<std::uint32_t>("checksum") != trace::checksum(covered)) {
    throw FormatError("policy trace damaged at byte " + std::to_string(start) +
                      ": checksum of the record does not match");
  }
  Reader in(payload, start + 5);
  if (kind < static_cast<std::uint8_t>(Kind::kProposers) ||
      kind > static_cast<std::uint8_t>(Kind::kEnd)) {
    in.fail("unknown kind of record " + std::to_string(kind));
  }
  const bool last = static_cast<Kind>(kind) == Kind::kEnd;
  if (last) {
    const auto count = in.get<std::uint64_t>("records");
    if (count != num_records_) {
      in.fail("must have " + std::to_string(count) + " records, got " +
              std::to_string(num_records_));
    }
  } else {
    dispatch(static_cast<Kind>(kind), in);
  }
  ++num_records_;
  if (in.remaining() != 0) in.fail("bytes behind the record's fields");
  return !last;
}

void Replayer::dispatch(Kind kind, Reader& in) {
  const bool needs_context =
      kind == Kind::kPrefill || kind == Kind::kPlan || kind == Kind::kAllocate;
  if (needs_context && !has_context_) in.fail("a call before any context");
  switch (kind) {
    case Kind::kProposers:
      return proposers(in);
    case Kind::kContext:
      return context(in);
    case Kind::kPrefill:
      return prefill(in);
    case Kind::kPlan:
      return plan(in);
    case Kind::kAllocate:
      return allocate(in);
    case Kind::kObserve:
      return observe(in);
    case Kind::kFinish:
      return policy_.finish(in.get<std::int64_t>("request id"));
    case Kind::kEnd:
      return;
  }
}

void Replayer::proposers(Reader& in) {
  const std::size_t count = in.get_count("proposers", kProposerBytes);
  names_.assign(count, {});
  std::vector<bool> pays(count);
  for (std::size_t i = 0; i < count; ++i) {
    pays[i] = in.get_bool("pays_per_depth");
    names_[i] = in.get_text("name of a proposer");
  }
  proposers_.clear();
  for (std::size_t i = 0; i < count; ++i) {
    proposers_.push_back({.name = names_[i], .pays_per_depth = pays[i]});
  }
  step_.proposers = proposers_;
  // Requests name their proposer by index, so those of the old list must not meet the new one.
  has_context_ = false;
}

void Replayer::context(Reader& in) {
  step_.now = in.get<double>("now");
  step_.base = get_load(in);
  step_.num_decodes = get_number(in, "num_decodes");
  step_.token_budget = get_room(in, "token_budget");
  step_.block_size = get_number(in, "block_size");
  step_.free_blocks = get_room(in, "free_blocks");
  requests_.clear();
  const std::size_t count = in.get_count("requests", kRequestBytes);
  requests_.reserve(count);
  for (std::size_t i = 0; i < count; ++i) requests_.push_back(get_request(in, proposers_.size()));
  has_context_ = true;
}

void Replayer::differs(std::int64_t step) {
  ++result_.num_different;
  if (result_.first_different_step < 0) result_.first_different_step = step;
}

void Replayer::request_differs(std::size_t request) {
  if (request >= different_.size() || different_[request]) return;
  different_[request] = true;
  differs(result_.num_steps - 1);
}

void Replayer::prefill(Reader& in) {
  const auto wanted = get_room(in, "wanted");
  const auto answer = get_room(in, "answer");
  // Belongs to the step whose plan comes next.
  if (policy_.max_prefill_tokens(step_, requests_, wanted) != answer) differs(result_.num_steps);
}

void Replayer::plan(Reader& in) {
  const std::size_t count = in.get_count("candidates", kCandidateBytes);
  std::vector<Candidate> candidates(count);
  if (candidate_trees_.size() < count) candidate_trees_.resize(count);
  for (std::size_t i = 0; i < count; ++i) {
    Candidate& candidate = candidates[i];
    candidate.request = in.get_in<std::int32_t>("candidate's request", 0,
                                                static_cast<std::int64_t>(requests_.size()) - 1);
    candidate.proposer = in.get_in<std::int32_t>("candidate's proposer", 0,
                                                 static_cast<std::int64_t>(proposers_.size()) - 1);
    candidate.tree = get_tree(in, candidate_trees_[i]) ? &candidate_trees_[i] : nullptr;
    if (i > 0 && std::pair(candidate.request, candidate.proposer) <=
                     std::pair(candidates[i - 1].request, candidates[i - 1].proposer)) {
      in.fail("candidates must come by request, then proposer");
    }
  }
  const std::vector<DraftChoice> recorded = get_choices(in);
  ++result_.num_steps;
  result_.num_decisions += static_cast<std::int64_t>(requests_.size());
  different_.assign(requests_.size(), false);
  std::vector<DraftChoice> choices(requests_.size());
  policy_.plan(step_, requests_, candidates, choices);
  for (std::size_t i = 0; i < choices.size(); ++i) {
    if (!same_choice(choices[i], recorded[i])) request_differs(i);
  }
}

void Replayer::allocate(Reader& in) {
  const std::vector<DraftChoice> choices = get_choices(in);
  const std::vector<DraftWork> drafts = get_drafts(in);
  const std::size_t count = in.get_count("trees", 1);
  if (count != requests_.size()) in.fail("there must be one tree per request");
  if (trees_.size() < count) trees_.resize(count);
  std::vector<TokenTree*> trees(count);
  for (std::size_t i = 0; i < count; ++i) {
    trees[i] = get_tree(in, trees_[i]) ? &trees_[i] : nullptr;
  }
  std::vector<TokenTree> recorded(trees_.begin(),
                                  trees_.begin() + static_cast<std::ptrdiff_t>(count));
  for (TokenTree& tree : recorded) {
    const auto kept = static_cast<trace::Kept>(in.get_in<std::uint8_t>("kept", 0, 1));
    if (kept == trace::Kept::kOther) {
      get_tree(in, tree);
    } else {
      tree.truncate(in.get_in<std::int32_t>("kept nodes", 0, tree.size()));
    }
  }
  policy_.allocate(step_, requests_, choices, drafts, trees);
  for (std::size_t i = 0; i < count; ++i) {
    if (trees[i] == nullptr) continue;
    if (trees[i]->tokens != recorded[i].tokens || trees[i]->parents != recorded[i].parents) {
      request_differs(i);
    }
  }
}

void Replayer::observe(Reader& in) {
  StepOutcome outcome;
  outcome.now = in.get<double>("now");
  outcome.load = get_load(in);
  outcome.seconds = in.get<double>("seconds");
  const std::vector<DraftWork> drafts = get_drafts(in);
  const std::size_t count = in.get_count("outcomes", kOutcomeBytes);
  std::vector<RequestOutcome> requests(count);
  std::vector<std::vector<TokenId>> emitted(count);
  for (std::size_t i = 0; i < count; ++i) {
    requests[i].id = in.get<std::int64_t>("request id");
    requests[i].num_verified = in.get_in<std::int32_t>("num_verified", 0, kMostNodes);
    requests[i].num_accepted = in.get_in<std::int32_t>("num_accepted", 0, requests[i].num_verified);
    emitted[i].resize(in.get_count("emitted tokens", sizeof(TokenId)));
    for (TokenId& token : emitted[i]) {
      token = in.get_in<TokenId>("token", 0, kMany);
    }
    requests[i].emitted = emitted[i];
  }
  outcome.drafts = drafts;
  outcome.requests = requests;
  policy_.observe(outcome);
}

std::vector<DraftChoice> Replayer::get_choices(Reader& in) {
  const std::size_t count = in.get_count("choices", kChoiceBytes);
  if (count != requests_.size()) in.fail("there must be one choice per request");
  std::vector<DraftChoice> choices(count);
  for (auto& [proposer, depth, min_survival, claims] : choices) {
    proposer = in.get_in<std::int32_t>("choice's proposer", -1,
                                       static_cast<std::int64_t>(proposers_.size()) - 1);
    depth = in.get_in<std::int32_t>("depth", 0, kMany);
    min_survival = in.get<float>("min_survival");
    claims.offset = in.get<float>("claims' offset");
    claims.scale = in.get<float>("claims' scale");
  }
  return choices;
}

std::vector<DraftWork> Replayer::get_drafts(Reader& in) {
  std::vector<DraftWork> drafts(in.get_count("drafts", kDraftBytes));
  for (auto& [proposer, load, seconds] : drafts) {
    proposer = in.get_in<std::int32_t>("draft's proposer", 0,
                                       static_cast<std::int64_t>(proposers_.size()) - 1);
    load = get_load(in);
    seconds = in.get<double>("seconds");
  }
  return drafts;
}

}  // namespace

ReplayResult replay_bytes(std::span<const std::byte> trace, LengthPolicy& policy) {
  return Replayer(trace, policy).run();
}

ReplayResult replay(const std::filesystem::path& path, LengthPolicy& policy) {
  const MappedFile file(path.string());
  return replay_bytes({file.data(), file.size()}, policy);
}

}  // namespace smartspec
