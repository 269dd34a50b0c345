// SPDX-FileCopyrightText: The SmartSpec authors
// SPDX-License-Identifier: Apache-2.0
#include "smartspec/sampler.hpp"

#include "smartspec/philox.hpp"
#include "verify/sampler_core.hpp"
#include "verify/walk.hpp"

namespace smartspec {

struct Sampler::Impl {
  verify::BasicSampler<verify::StandardRule> core;
};

Sampler::Sampler(const SamplingParams& params, std::uint64_t seed, std::span<const TokenId> prompt,
                 std::int32_t vocab_size, std::shared_ptr<const StopVocabulary> stops)
    : impl_(new Impl{{params, seed, prompt, vocab_size, std::move(stops)}}) {}
Sampler::~Sampler() = default;
Sampler::Sampler(Sampler&&) noexcept = default;
Sampler& Sampler::operator=(Sampler&&) noexcept = default;

TokenId Sampler::sample(std::span<const float> logits) { return impl_->core.sample(logits); }

void Sampler::sample_top(std::span<const float> logits, std::int32_t count,
                         std::vector<TokenId>& out, std::vector<float>* scores) {
  impl_->core.sample_top(logits, count, out, scores);
}

FinishReason Sampler::accept(TokenId token) { return impl_->core.accept(token); }
std::int32_t Sampler::mark() const noexcept { return impl_->core.mark(); }
void Sampler::rewind(std::int32_t mark) { impl_->core.rewind(mark); }
bool Sampler::is_greedy() const noexcept { return impl_->core.is_greedy(); }
std::int32_t Sampler::num_output_tokens() const noexcept {
  return impl_->core.history().num_output_tokens();
}
std::int32_t Sampler::matched_stop_string() const noexcept {
  return impl_->core.history().matched_string();
}
TokenId Sampler::matched_stop_token() const noexcept {
  return impl_->core.history().matched_token();
}
const SamplingParams& Sampler::params() const noexcept { return impl_->core.params(); }
std::uint64_t Sampler::seed() const noexcept { return impl_->core.seed(); }

bool Sampler::describe(DrawState& out) const { return impl_->core.describe(out); }

void Verification::clear() noexcept {
  path.clear();
  tokens.clear();
  logprobs.clear();
  rows.clear();
  finish_reason = FinishReason::kNone;
}

void verify_tree(const TokenTree& tree, const LogitsRow& logits, Sampler& sampler,
                 Verification& out) {
  verify::walk<verify::StandardRule>(tree, logits, sampler, out);
}

void accept_drawn(const TokenTree& tree, std::span<const TokenId> drawn, Sampler& sampler,
                  Verification& out) {
  verify::accept_drawn(tree, drawn, sampler, out);
}

std::uint64_t seed_of_completion(std::uint64_t seed, std::int32_t index) noexcept {
  if (index == 0) return seed;
  const auto words = philox4x32({static_cast<std::uint32_t>(index), 0, 0,
                                 static_cast<std::uint32_t>(verify::Purpose::kCompletion)},
                                verify::StandardRule::key(seed));
  return (std::uint64_t{words[1]} << 32) | words[0];
}

double gumbel_noise(std::uint64_t seed, std::int64_t position, TokenId token) noexcept {
  return verify::noise<verify::StandardRule>(seed, position, token);
}

}  // namespace smartspec
