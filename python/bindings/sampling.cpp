// SPDX-FileCopyrightText: The SmartSpec authors
// SPDX-License-Identifier: Apache-2.0
#include "smartspec/sampler.hpp"
#include "smartspec/sampling_params.hpp"
#include "views.hpp"

namespace smartspec::python {

void init_sampling(py::module_& m) {
  m.attr("MAX_N") = kMaxN;
  m.attr("MAX_LOGPROBS") = kMaxLogprobs;
  m.attr("MAX_STOP_STRINGS") = kMaxStopStrings;
  m.attr("MAX_STOP_STRING_BYTES") = kMaxStopStringBytes;
  m.attr("MAX_STOP_TOKEN_IDS") = kMaxStopTokenIds;
  m.attr("MAX_BAD_WORDS") = kMaxBadWords;
  m.attr("MAX_BAD_WORD_TOKENS") = kMaxBadWordTokens;

  py::class_<SamplingParams>(m, "SamplingParams",
                             "How to choose tokens and when to stop; vLLM's names and defaults. "
                             "Bad words are token sequences here.")
      .def(py::init<>())
      .def_readwrite("n", &SamplingParams::n)
      .def_readwrite("temperature", &SamplingParams::temperature)
      .def_readwrite("top_p", &SamplingParams::top_p)
      .def_readwrite("top_k", &SamplingParams::top_k)
      .def_readwrite("min_p", &SamplingParams::min_p)
      .def_readwrite("presence_penalty", &SamplingParams::presence_penalty)
      .def_readwrite("frequency_penalty", &SamplingParams::frequency_penalty)
      .def_readwrite("repetition_penalty", &SamplingParams::repetition_penalty)
      .def_readwrite("seed", &SamplingParams::seed)
      .def_readwrite("max_tokens", &SamplingParams::max_tokens)
      .def_readwrite("min_tokens", &SamplingParams::min_tokens)
      .def_readwrite("stop", &SamplingParams::stop)
      .def_readwrite("stop_token_ids", &SamplingParams::stop_token_ids)
      .def_readwrite("ignore_eos", &SamplingParams::ignore_eos)
      .def_readwrite("include_stop_str_in_output", &SamplingParams::include_stop_str_in_output)
      .def_readwrite("logprobs", &SamplingParams::logprobs)
      .def_readwrite("prompt_logprobs", &SamplingParams::prompt_logprobs)
      .def_readwrite("logit_bias", &SamplingParams::logit_bias)
      .def_readwrite("allowed_token_ids", &SamplingParams::allowed_token_ids)
      .def_readwrite("bad_words", &SamplingParams::bad_words)
      .def("validate", &SamplingParams::validate, py::arg("vocab_size"),
           "Raises ValueError naming the field, its value and what is allowed.");

  py::class_<StopVocabulary, std::shared_ptr<StopVocabulary>>(
      m, "StopVocabulary", "End-of-text ids, and the bytes of every token for stop strings.")
      .def(py::init([](const TokenIds& eos_token_ids, const std::vector<py::bytes>& token_bytes) {
             auto stops = std::make_shared<StopVocabulary>();
             stops->eos_token_ids = eos_token_ids.ids;
             stops->token_bytes.assign(token_bytes.begin(), token_bytes.end());
             return stops;
           }),
           py::arg("eos_token_ids") = TokenIds{}, py::arg("token_bytes") = std::vector<py::bytes>{})
      .def_readonly("eos_token_ids", &StopVocabulary::eos_token_ids)
      .def("__len__", [](const StopVocabulary& stops) { return stops.token_bytes.size(); });

  py::class_<TokenLogprob>(m, "TokenLogprob")
      .def_readonly("token", &TokenLogprob::token)
      .def_readonly("logprob", &TokenLogprob::logprob)
      .def_readonly("rank", &TokenLogprob::rank);
}

}  // namespace smartspec::python
