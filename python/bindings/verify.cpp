// SPDX-FileCopyrightText: The SmartSpec authors
// SPDX-License-Identifier: Apache-2.0
// Sampler and verify_tree on their own: logits are NumPy rows, read in place.
#include <memory>

#include "names.hpp"
#include "smartspec/sampler.hpp"
#include "smartspec/token_tree.hpp"
#include "views.hpp"

namespace smartspec::python {

namespace {

/// The sampler and the row width that its arguments are checked against.
struct BoundSampler {
  Sampler sampler;
  std::int32_t vocab_size;

  [[nodiscard]] std::span<const float> row(const py::array& logits) const {
    return view<float>(logits, "logits", {vocab_size});
  }
};

Verification verify(const TokenTree& tree, const py::array& logits, BoundSampler& self) {
  if (const std::string fault = tree.validate(self.vocab_size, kMaxTreeNodes, kMaxTreeNodes);
      !fault.empty()) {
    throw std::invalid_argument("tree: " + fault);
  }
  const auto rows = view<float>(logits, "logits", {tree.size() + 1, self.vocab_size});
  const auto width = static_cast<std::size_t>(self.vocab_size);
  Verification out;
  const py::gil_scoped_release release;
  verify_tree(
      tree,
      [&](std::int32_t node) {
        return rows.subspan(static_cast<std::size_t>(node + 1) * width, width);
      },
      self.sampler, out);
  return out;
}

std::vector<std::pair<TokenId, float>> sample_top(BoundSampler& self, const py::array& logits,
                                                  std::int32_t count) {
  std::vector<TokenId> tokens;
  std::vector<float> scores;
  self.sampler.sample_top(self.row(logits), count, tokens, &scores);
  std::vector<std::pair<TokenId, float>> out(tokens.size());
  for (std::size_t i = 0; i < out.size(); ++i) out[i] = {tokens[i], scores[i]};
  return out;
}

std::optional<std::string> accept(BoundSampler& self, TokenId token) {
  if (token < 0 || token >= self.vocab_size) {
    throw std::invalid_argument("token must be in [0, " + std::to_string(self.vocab_size) +
                                "), got " + std::to_string(token));
  }
  return word_of(self.sampler.accept(token));
}

}  // namespace

void init_verify(py::module_& m) {
  py::class_<BoundSampler>(
      m, "Sampler",
      "Sampling state of one request. Logits are float32 [vocab_size], read in "
      "place. One thread at a time.")
      .def(py::init([](const SamplingParams& params, std::uint64_t seed, const TokenIds& prompt,
                       std::int32_t vocab_size, const std::shared_ptr<StopVocabulary>& stops) {
             auto kept = stops ? stops : std::make_shared<StopVocabulary>();
             return std::make_unique<BoundSampler>(
                 BoundSampler{Sampler(params, seed, prompt.ids, vocab_size, kept), vocab_size});
           }),
           py::arg("params"), py::arg("seed"), py::arg("prompt"), py::arg("vocab_size"),
           py::arg("stops") = py::none())
      .def(
          "sample",
          [](BoundSampler& self, const py::array& logits) {
            return self.sampler.sample(self.row(logits));
          },
          py::arg("logits"), "The token at the next position; does not advance.")
      .def("sample_top", &sample_top, py::arg("logits"), py::arg("count"),
           "The `count` best tokens of the same rule and their softmax(logits / T), best first.")
      .def("accept", &accept, py::arg("token"),
           "Appends an emitted token: None, or 'stop' or 'length' when the request ends with it.")
      .def("mark", [](const BoundSampler& self) { return self.sampler.mark(); })
      .def(
          "rewind", [](BoundSampler& self, std::int32_t mark) { self.sampler.rewind(mark); },
          py::arg("mark"))
      .def_property_readonly("is_greedy",
                             [](const BoundSampler& self) { return self.sampler.is_greedy(); })
      .def_property_readonly(
          "num_output_tokens",
          [](const BoundSampler& self) { return self.sampler.num_output_tokens(); })
      .def_property_readonly(
          "matched_stop_string",
          [](const BoundSampler& self) { return self.sampler.matched_stop_string(); })
      .def_property_readonly("matched_stop_token", [](const BoundSampler& self) {
        return self.sampler.matched_stop_token();
      });

  py::class_<Verification>(m, "Verification", "What verifying one tree gave.")
      .def_readonly("path", &Verification::path)
      .def_readonly("tokens", &Verification::tokens)
      .def_readonly("logprobs", &Verification::logprobs)
      .def_readonly("rows", &Verification::rows)
      .def_property_readonly("finish_reason",
                             [](const Verification& v) { return word_of(v.finish_reason); });

  m.def("verify_tree", &verify, py::arg("tree"), py::arg("logits"), py::arg("sampler"),
        "Walks `tree` with the target's own tokens and advances the sampler. `logits` is float32 "
        "[len(tree) + 1, vocab_size]; row 0 follows the last verified token, row i + 1 node i.");
  m.def(
      "compute_logprobs",
      [](const py::array& logits, TokenId chosen, std::int32_t num_top) {
        const auto row = view<float>(logits, "logits", {-1});
        if (chosen < 0 || static_cast<std::size_t>(chosen) >= row.size() || num_top < 0) {
          throw std::invalid_argument("chosen must be in [0, " + std::to_string(row.size()) +
                                      ") and num_top >= 0, got " + std::to_string(chosen) +
                                      " and " + std::to_string(num_top));
        }
        return compute_logprobs(row, chosen, num_top);
      },
      py::arg("logits"), py::arg("chosen"), py::arg("num_top"));
  m.def("gumbel_noise", &gumbel_noise, py::arg("seed"), py::arg("position"), py::arg("token"),
        "The noise of (seed, absolute output position, token id) that every draw adds.");
  m.def("seed_of_completion", &seed_of_completion, py::arg("seed"), py::arg("index"));
}

}  // namespace smartspec::python
