// SPDX-FileCopyrightText: The SmartSpec authors
// SPDX-License-Identifier: Apache-2.0
#include "names.hpp"
#include "smartspec/engine.hpp"
#include "views.hpp"

namespace smartspec::python {

namespace {

void init_options(py::module_& m) {
  py::class_<EngineOptions>(m, "EngineOptions", "Names and meaning as in vLLM.")
      .def(py::init<>())
      .def_readwrite("max_num_seqs", &EngineOptions::max_num_seqs)
      .def_readwrite("max_num_batched_tokens", &EngineOptions::max_num_batched_tokens)
      .def_readwrite("block_size", &EngineOptions::block_size)
      .def_readwrite("num_kv_blocks", &EngineOptions::num_kv_blocks)
      .def_readwrite("kv_memory_bytes", &EngineOptions::kv_memory_bytes)
      .def_readwrite("max_model_len", &EngineOptions::max_model_len)
      .def_property(
          "kv_dtype",
          [](const EngineOptions& o) -> std::optional<std::string> {
            if (!o.kv_dtype) return std::nullopt;
            return name_of(*o.kv_dtype);
          },
          [](EngineOptions& o, const std::optional<std::string>& dtype) {
            o.kv_dtype = weight_dtype(dtype);
          })
      .def_readwrite("enable_prefix_caching", &EngineOptions::enable_prefix_caching)
      .def_readwrite("aging_seconds", &EngineOptions::aging_seconds)
      .def_readwrite("seed", &EngineOptions::seed)
      .def_readwrite("prefix_hash_seed", &EngineOptions::prefix_hash_seed)
      .def_readwrite("record_logits_hash", &EngineOptions::record_logits_hash);
}

void init_stats(py::module_& m) {
  py::class_<RequestStats>(m, "RequestStats")
      .def_readonly("num_drafted", &RequestStats::num_drafted)
      .def_readonly("num_accepted", &RequestStats::num_accepted)
      .def_readonly("num_steps", &RequestStats::num_steps)
      .def_readonly("num_preemptions", &RequestStats::num_preemptions)
      .def_readonly("num_cached_tokens", &RequestStats::num_cached_tokens)
      .def_readonly("proposer", &RequestStats::proposer,
                    "Whose draft was verified last: an index into EngineStats.proposers; -1: none.")
      .def_readonly("length_histogram", &RequestStats::length_histogram,
                    "Decoding steps by draft tokens verified; the last entry: that many or more.")
      .def_property_readonly(
          "no_speculation_reason",
          [](const RequestStats& s) { return name_of(s.no_speculation_reason); },
          "Why the last step did not speculate, or 'none'.");

  py::class_<ProposerStats>(m, "ProposerStats")
      .def_readonly("name", &ProposerStats::name)
      .def_readonly("pays_per_depth", &ProposerStats::pays_per_depth)
      .def_readonly("num_calls", &ProposerStats::num_calls)
      .def_readonly("num_proposed", &ProposerStats::num_proposed, "Tokens it returned.")
      .def_readonly("num_drafted", &ProposerStats::num_drafted, "Of them verified.")
      .def_readonly("num_accepted", &ProposerStats::num_accepted)
      .def_readonly("seconds", &ProposerStats::seconds);

  py::class_<EngineStats>(m, "EngineStats")
      .def_readonly("num_steps", &EngineStats::num_steps)
      .def_readonly("num_tokens_computed", &EngineStats::num_tokens_computed)
      .def_readonly("num_drafted", &EngineStats::num_drafted)
      .def_readonly("num_accepted", &EngineStats::num_accepted)
      .def_readonly("num_emitted", &EngineStats::num_emitted)
      .def_readonly("num_preemptions", &EngineStats::num_preemptions)
      .def_readonly("num_invalid_drafts", &EngineStats::num_invalid_drafts)
      .def_readonly("num_proposer_errors", &EngineStats::num_proposer_errors)
      .def_readonly("last_proposer_error", &EngineStats::last_proposer_error)
      .def_readonly("num_running", &EngineStats::num_running)
      .def_readonly("num_waiting", &EngineStats::num_waiting)
      .def_readonly("propose_seconds", &EngineStats::propose_seconds)
      .def_readonly("paid_seconds", &EngineStats::paid_seconds,
                    "Of propose_seconds: by proposers that pay per depth.")
      .def_readonly("decision_seconds", &EngineStats::decision_seconds, "Scheduler and policy.")
      .def_readonly("forward_seconds", &EngineStats::forward_seconds)
      .def_readonly("verify_seconds", &EngineStats::verify_seconds)
      .def_readonly("step_seconds", &EngineStats::step_seconds)
      .def_readonly("proposers", &EngineStats::proposers)
      .def_property_readonly(
          "policy", [](const EngineStats& stats) { return stats.scheduler.policy; },
          "What the length policy did.")
      .def_readonly("kv", &EngineStats::kv);
}

}  // namespace

void init_engine_types(py::module_& m) {
  init_options(m);
  init_stats(m);
  py::class_<RequestOutput>(m, "RequestOutput",
                            "What one step did for one completion of one request.")
      .def_readonly("id", &RequestOutput::id)
      .def_readonly("index", &RequestOutput::index)
      .def_readonly("new_token_ids", &RequestOutput::new_token_ids)
      .def_readonly("logprobs", &RequestOutput::logprobs)
      .def_readonly("prompt_logprobs", &RequestOutput::prompt_logprobs)
      .def_readonly("logits_hashes", &RequestOutput::logits_hashes)
      .def_property_readonly("finish_reason",
                             [](const RequestOutput& o) { return word_of(o.finish_reason); })
      .def_readonly("stop_string_index", &RequestOutput::stop_string_index)
      .def_readonly("stop_token_id", &RequestOutput::stop_token_id)
      .def_readonly("error", &RequestOutput::error)
      .def_readonly("stats", &RequestOutput::stats);
}

}  // namespace smartspec::python
